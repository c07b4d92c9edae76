"""`rlx verify-resume`: does a method, killed again and again, do exactly what it does undisturbed?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.cli.arguments import AsJson, Overrides, SpecFile
from engine.cli.output import Column, answer, answer_json, status, table, talk
from engine.cli.quick import QuickCommand


def register(root: typer.Typer) -> None:
    """Add `verify-resume` to `rlx`."""
    root.command("verify-resume", cls=QuickCommand)(verify_resume)


def verify_resume(
    spec: SpecFile,
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(min=1, max=100, help="How often a stage's process is killed.")] = 6,
    seed: Annotated[int, typer.Option(help="Chooses the moments.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Prove that SPEC's method resumes bit for bit.

    Runs the tiny twin twice, the second time killing its stages: in the middle of saves, between steps, anywhere. Keeps
    a certificate. Exits 1 where the two runs part, and names the first step and layer.
    """
    import shutil
    import signal
    from pathlib import Path
    from tempfile import mkdtemp

    from engine.cli.compiling import compiled
    from engine.cli.following import interrupt
    from engine.cli.places import store
    from engine.cli.preflight import check
    from engine.cli.verification import verify
    from engine.clock import utc_now
    from engine.errors import ExitCode, SpecError
    from engine.store import certificates

    variants = compiled(spec, overrides or [], tiny=True)
    if len(variants) > 1:
        raise SpecError(f"the spec is a sweep of {len(variants)}: verify one of them, by overrides on the line")
    check(variants, embedded=True)
    db = store()
    home = Path(mkdtemp(prefix="rlx-verify-"))
    before = signal.signal(signal.SIGTERM, interrupt)  # so that the worker goes with us
    keep = False
    try:
        finding = verify(variants[0], home, kills=kills, seed=seed, now=utc_now)
        keep = finding.outcome != "identical" or not finding.kills
        if finding.kills:  # else nothing was tried
            with db.write() as session:
                certificates.record(session, finding)
    finally:
        signal.signal(signal.SIGTERM, before)
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
    if as_json:
        answer_json(finding)
    else:
        _stages(finding.detail["stages"])
        answer(status(certificates.in_words(finding, finding.code)))
    if finding.detail["error"]:
        talk(f"error: {finding.detail['error']}")
    if finding.kills < kills:
        talk(f"{finding.kills} of {kills} kills found their moment")
    if keep:
        talk(f"both runs are in {home}: RLX_HOME={home} rlx ls")
        raise typer.Exit(ExitCode.RUN_FAILED)


def _stages(stages: list[dict[str, Any]]) -> None:
    if not stages:
        return
    table(
        [
            Column("STAGE", lambda row: row["name"]),
            Column("FINGERPRINTS", lambda row: row["fingerprints"], right=True),
            Column("ATTEMPTS", lambda row: row["attempts"], right=True),
            Column("OUTPUT", lambda row: row["output"][:12] if row["output"] else "differs"),
            Column("PARTED AT", lambda row: row["parted"]),
        ],
        stages,
    )
