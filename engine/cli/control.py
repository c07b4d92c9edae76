"""`rlx cancel` and `rlx resume`."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli.arguments import Handle, Wait
from engine.cli.output import answer, talk
from engine.cli.quick import QuickCommand


def register(root: typer.Typer) -> None:
    """Add these commands to `rlx`."""
    root.command("cancel", cls=QuickCommand)(cancel)
    root.command("resume", cls=QuickCommand)(resume)


def cancel(
    handles: Annotated[list[str], typer.Argument(help="Handles, unique prefixes, or @last.")],
    grace: Annotated[
        str, typer.Option("--grace", metavar="DURATION", help="Time for a checkpoint before what runs is killed.")
    ] = "2s",
) -> None:
    """Stop runs within seconds.

    What is running is asked to write a checkpoint, and killed with all its processes when its time is up; `rlx resume`
    goes on from its last checkpoint. Exits 5 for a run that is over already.
    """
    from engine.cli.places import required_store
    from engine.cli.provenance import user
    from engine.clock import utc_now
    from engine.errors import Refused
    from engine.store import runs

    grace_s = _duration(grace)
    over = []
    with required_store().write() as session:
        for run in [runs.find(session, handle) for handle in handles]:
            if not runs.request_stop(session, run, now=utc_now(), by=user(), grace_s=grace_s):
                over.append(f"{run.handle} ({run.status})")
                continue
            answer(run.handle)
            soon = "is cancelled" if run.status == "cancelled" else f"stops within {grace}"
            talk(f"{run.handle} {soon}; `rlx resume {run.handle}` goes on from there")
    if over:
        raise Refused(f"over already: {', '.join(over)}")


def _duration(text: str) -> float:
    from pydantic_core import PydanticCustomError

    from engine.errors import SpecError
    from engine.spec.base import parse_duration

    try:
        return parse_duration(text)
    except PydanticCustomError as error:
        raise SpecError(f"--grace {text}: {error.message()}") from None


def resume(
    handle: Handle,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="`hardware.key=value`: go on on other hardware.", metavar="[KEY=VALUE]..."),
    ] = None,
    wait: Wait = None,
) -> None:
    """Go on with a failed or cancelled run from its checkpoints.

    A run whose worker died is taken up too. On the embedded default it runs here, in the foreground. Checkpoints are
    the same for any number of ranks: `rlx resume RUN hardware.launcher=single` goes on in one process.
    """
    from engine.cli.places import required_store
    from engine.cli.rehousing import other_hardware
    from engine.cli.submitting import carry_out
    from engine.clock import utc_now
    from engine.errors import Refused
    from engine.store import runs, workers
    from engine.store.processes import provably_gone

    db, now = required_store(), utc_now()
    with db.write() as session:
        run = runs.find(session, handle)
        resources = other_hardware(run.resolved, overrides) if overrides else None
        requeued = runs.resume(session, run, now=now, resources=resources)
    if not requeued:
        with db.read() as session:
            helpers = [
                worker.name
                for worker in workers.alive(session, now)
                if worker.run_id in (None, run.id) and not provably_gone(worker.host, worker.pid, worker.pid_started)
            ]
        if helpers:
            raise Refused(
                f"{run.handle} is {run.status}, in the hands of {helpers[0]}: `rlx watch {run.handle}` follows"
            )
    answer(run.handle)
    carry_out(db, [run], wait=wait)
