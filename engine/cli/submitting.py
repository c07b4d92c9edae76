"""`rlx submit`: from a spec to a queued run, and on the embedded default to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli.arguments import Overrides, SpecFile, Wait
from engine.cli.output import answer, talk
from engine.cli.quick import QuickCommand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.cli.compiling import Compiled
    from engine.cli.provenance import Provenance
    from engine.plan.stage import Plan
    from engine.store.session import Database
    from engine.store.tables import Run, RunId


def register(root: typer.Typer) -> None:
    """Add `submit` to `rlx`."""
    root.command("submit", cls=QuickCommand)(submit)


def submit(
    spec: SpecFile,
    overrides: Overrides = None,
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Run the tiny twin: a small random model, two steps a stage, CPU.")
    ] = False,
    wait: Wait = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Run every stage, whatever the cache holds.")] = False,
    priority: Annotated[int | None, typer.Option(help="Higher goes first; by default the spec's.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="A tag to find it by; may be repeated.")] = None,
    note: Annotated[str, typer.Option(help="A note to remember it by.")] = "",
) -> None:
    """Check SPEC, queue its stages, and print the run's handle.

    Without a worker elsewhere the run is carried out here, with live progress; Ctrl-C stops it at a checkpoint.
    """
    from contextlib import closing

    from engine.cli import provenance
    from engine.cli.places import store, the_settings
    from engine.functions.process import HostProcess
    from engine.functions.sources import Limits

    # Other processes' work, begun while this one still imports what reads a spec.
    captured = provenance.capturing()
    with closing(HostProcess(Limits())) as host:
        from engine.cli.compiling import compiled
        from engine.cli.preflight import check

        variants = compiled(spec, overrides or [], tiny=tiny)
        check(variants, embedded=the_settings().embedded, host=host)
    db = store()
    check_devices([variant.plan for variant in variants])
    runs = [
        queue(db, variant, captured(), tiny=tiny, no_cache=no_cache, priority=priority, tags=tag, note=note)
        for variant in variants
    ]
    for run in runs:
        answer(run.handle)
    carry_out(db, runs, wait=wait)


def queue(
    db: Database,
    variant: Compiled,
    captured: Provenance | None = None,
    *,
    tiny: bool = False,
    no_cache: bool = False,
    priority: int | None = None,
    tags: list[str] | None = None,
    note: str = "",
) -> Run:
    """Store one variant as a run with its stages ready; the announcement is in the outbox.

    `captured` is what it is submitted with, if that is known already.
    """
    from engine.cli import provenance
    from engine.cli.models import with_models
    from engine.clock import utc_now
    from engine.functions.sources import reward_hash
    from engine.store import runs

    experiment, captured = variant.loaded.experiment, captured or provenance.capture()
    submission = runs.Submission(
        source=variant.loaded.source,
        resolved=variant.loaded.resolved,
        overrides=variant.loaded.overrides,
        base=variant.base,
        priority=experiment.priority if priority is None else priority,
        tags=[*experiment.tags, *(tags or [])],
        notes=note or experiment.notes,
        user=provenance.user(),
        code=captured.code,
        packages=captured.packages,
        hardware=captured.hardware,
        tiny=tiny,
        functions_hash=reward_hash(variant.loaded.resolved),
        no_cache=no_cache,
        max_attempts=experiment.retries.max_attempts,
        retries=experiment.retries.model_dump(mode="json", exclude={"max_attempts"}),
    )
    plan = with_models(variant.plan, experiment.model.name)
    return db.transact(lambda session: runs.submit(session, plan, submission, now=utc_now()))


def carry_out(db: Database, runs: list[Run], *, wait: bool | None) -> None:
    """See to it that somebody runs these: announce them, start a worker if none is alive, follow if we should.

    Raises typer.Exit with the exit code of what was waited for.
    """
    from engine.cli.following import exit_code, foreground
    from engine.cli.outcome import tell
    from engine.cli.places import the_settings
    from engine.store.tables import RunId
    from workers import dispatch

    settings = the_settings()
    dispatch.publish(settings)
    needs_worker = settings.embedded and not dispatch.find_alive(settings)
    if needs_worker and wait is False and len(runs) > 1:
        # One worker a run would run them all at once, on one machine.
        talk(f"{len(runs)} runs are queued: `rlx worker` carries them out one after another")
        return
    worst = 0
    for number, run in enumerate(runs):
        run_id = RunId(run.id)
        worker = dispatch.start_worker(settings, run_id, queues=queues_of(db, run_id)) if needs_worker else None
        if wait is False or (wait is None and worker is None):
            talk(f"{run.handle} is queued: `rlx watch {run.handle}` follows it")
            continue
        try:
            followed = foreground(db, run_id, run.handle, worker)
        except typer.Exit:
            for left in runs[number + 1 :] if needs_worker else ():
                talk(f"{left.handle} is still queued: rlx resume {left.handle}")
            raise
        tell(db, run_id, followed)
        worst = max(worst, exit_code(followed))
    raise typer.Exit(worst)


def queues_of(db: Database, run_id: RunId) -> list[str]:
    """The queues that the run's stages wait in: a worker of its own serves them all."""
    from engine.store import stages

    with db.read() as session:
        return sorted({stage.queue for stage in stages.for_run(session, run_id)})


def check_devices(plans: Sequence[Plan]) -> None:
    """Refuse what would wait for ever, where there is no other worker: GPUs that this machine lacks, several nodes."""
    stages = [stage for plan in plans for stage in plan.stages if stage.resources.gpus or stage.resources.nodes > 1]
    if not stages:
        return
    from engine.cli.places import the_settings
    from engine.errors import Refused
    from workers import dispatch
    from workers.devices import gpus_here

    settings = the_settings()
    if not settings.embedded or dispatch.find_alive(settings):
        return
    here = len(gpus_here())
    for stage in stages:
        if (nodes := stage.resources.nodes) > 1:
            raise Refused(
                f"stage {stage.name!r} needs {nodes} workers at once, and `rlx submit` would start one: start {nodes} "
                "first (`rlx worker`, with different --name), or set hardware.nodes=1"
            )
        if stage.resources.gpus > here:
            raise Refused(
                f"stage {stage.name!r} asks for {stage.resources.gpus} GPU{'s' * (stage.resources.gpus > 1)}, and this "
                f"machine has {here or 'none'}. `--tiny` tries the spec without; hardware.gpus=0 runs it on the CPU; "
                "RLX_BROKER_URL and RLX_DATABASE_URL send it to a cluster."
            )
