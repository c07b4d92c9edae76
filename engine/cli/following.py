"""Following a run in the foreground: read the store again and again until the run is over.

On the embedded default the worker is our own child: when it dies with the run unfinished, nobody would carry on, and
we say so instead of waiting for ever.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from engine.cli.output import talk
from engine.cli.progress import Reporter, Snapshot, StageView, reporter_for
from engine.errors import ExitCode, Unreachable

if TYPE_CHECKING:
    from engine.store.session import Database
    from engine.store.tables import RunId

POLL_S = 0.25
STOPPED_WITHIN_S = 300.0
"""How long a stage may take to its checkpoint after Ctrl-C before we say that it goes on without us."""


@dataclass(frozen=True)
class Followed:
    """How following ended: the run's last snapshot, and why we stopped looking if it was not over."""

    snapshot: Snapshot
    lost: str | None = None


def snapshot(db: Database, run_id: RunId) -> Snapshot:
    """The run as it stands now."""
    from engine.store import evaluations, runs, stages
    from engine.store.listing import leading

    with db.read() as session:
        run = runs.get(session, run_id)
        found = stages.for_run(session, run_id)
        rows = evaluations.of_run(session, run_id)
        metric = leading(row.metric for row in rows)
        scores = [row for row in rows if row.metric == metric]
        return Snapshot(
            handle=run.handle,
            status=run.status,
            stages=tuple(_view(stage) for stage in found),
            score=scores[-1].mean if scores else None,
            metric=metric or "score",
        )


def _view(stage: Any) -> StageView:
    return StageView(
        name=stage.name,
        status=stage.status,
        done=stage.done,
        total=stage.total,
        note=stage.note,
        cached=stage.cached,
        attempt=stage.attempt,
        cause=stage.cause,
        error=stage.error,
        started_at=stage.started_at,
        finished_at=stage.finished_at,
    )


def follow(
    read: Callable[[], Snapshot],
    reporter: Reporter,
    *,
    lost: Callable[[], str | None] = lambda: None,
    wait: Callable[[], None] = lambda: time.sleep(POLL_S),
    give_up: Callable[[], bool] = lambda: False,
) -> Followed:
    """Show snapshots until the run is over, `lost` gives a reason, or `give_up` says so.

    A store that is away for a while is waited for: the run goes on without it, and so do we.
    """
    away, seen = False, None
    while True:
        try:
            seen = read()
            if away:
                reporter.message("the database is back")
            away = False
        except Unreachable as error:
            if seen is None:
                raise
            if not away:
                reporter.message(f"the database does not answer ({error}); the run goes on, waiting for it")
            away = True
        if not away:
            reporter.update(seen)
            if seen.finished:
                return Followed(seen)
            reason = lost()
            if reason is not None:
                # Its last act may have been to finish the run.
                last = read()
                reporter.update(last)
                return Followed(last, None if last.finished else reason)
        if give_up():
            return Followed(seen, "it is still stopping")
        wait()


def foreground(db: Database, run_id: RunId, handle: str, worker: subprocess.Popen[bytes] | None) -> Followed:
    """Follow a run that we answer for: Ctrl-C asks it to stop at a checkpoint, and waits for that.

    With `worker` None the run is somebody else's: Ctrl-C then only stops the looking.
    """
    reporter = reporter_for(time.monotonic)
    # `timeout`, or a scheduler: the run must not go on behind its back.
    before = signal.signal(signal.SIGTERM, interrupt)

    def lost() -> str | None:
        code = None if worker is None else worker.poll()
        return None if code is None else f"the worker left ({_ending(code)}) before the run was over"

    try:
        try:
            followed = follow(lambda: snapshot(db, run_id), reporter, lost=lost)
            if worker is not None:
                _let_go(worker)
            return followed
        except KeyboardInterrupt:
            if worker is None:
                reporter.close()
                talk(f"{handle} goes on: `rlx watch {handle}` follows it again, `rlx cancel {handle}` stops it")
                raise typer.Exit(ExitCode.INTERRUPTED) from None
            reporter.message("stopping at the next checkpoint; Ctrl-C again kills it at once")
            _request_stop(db, run_id, grace_s=STOPPED_WITHIN_S)
            deadline = time.monotonic() + STOPPED_WITHIN_S
            followed = follow(
                lambda: snapshot(db, run_id), reporter, lost=lost, give_up=lambda: time.monotonic() > deadline
            )
            reporter.close()
            _farewell(handle, followed)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
    except KeyboardInterrupt:  # the second one
        reporter.close()
        try:
            _request_stop(db, run_id, grace_s=0.0)
            talk(f"{handle} is being killed: `rlx resume {handle}` goes on from its last checkpoint")
        except Unreachable:
            talk(f"{handle} goes on stopping without us: `rlx show {handle}` says when it has")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
        reporter.close()


def interrupt(number: int, frame: object) -> None:
    """A handler that makes a signal the Ctrl-C that it stands for."""
    raise KeyboardInterrupt


def _request_stop(db: Database, run_id: RunId, *, grace_s: float) -> None:
    from engine.cli.provenance import user
    from engine.clock import utc_now
    from engine.store import runs

    with db.write() as session:
        runs.request_stop(session, runs.get(session, run_id), now=utc_now(), by=user(), grace_s=grace_s)


def _farewell(handle: str, followed: Followed) -> None:
    status = followed.snapshot.status
    if status == "succeeded":
        talk(f"{handle} had just succeeded: `rlx show {handle}`")
    elif status == "cancelled":
        talk(f"{handle} is stopped. Go on with: rlx resume {handle}")
    elif status == "failed":
        talk(f"{handle} failed while stopping: `rlx show {handle}` says why")
    else:
        talk(f"{handle}: {followed.lost}. Go on with: rlx resume {handle}")


def _let_go(worker: subprocess.Popen[bytes]) -> None:
    """The worker of a finished run leaves by itself; one that lingers is told to."""
    try:
        worker.wait(timeout=10)
    except subprocess.TimeoutExpired:
        worker.terminate()


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def exit_code(followed: Followed) -> int:
    """What the command that waited exits with."""
    return ExitCode.OK if followed.snapshot.status == "succeeded" else ExitCode.RUN_FAILED
