"""Removing a run with all that SQL remembers of it. Its files are the caller's to remove, afterwards.

What may be large goes first and in pieces, each a short transaction, so that no training waits; the run itself
goes last. Killed in between, the run is still there, and removing it again finishes. Meanwhile it cannot be
resumed. Artifacts are not the run's own: `garbage` takes those that nobody refers to any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Delete, delete, select, update
from sqlalchemy.orm import Session

from engine.clock import Clock, utc_now
from engine.errors import Refused
from engine.store import events, handles, locks, retention
from engine.store.session import Database
from engine.store.tables import Attempt, CacheEntry, Checkpoint, Metric, Run, Sample, Series, Stage
from engine.store.transitions import ENDED, changed

PIECE = 20_000
"""Rows a transaction."""
_HELD_S = 60.0
"""How long after its last piece an unfinished removal keeps a run from being resumed."""


@dataclass(frozen=True)
class Belongings:
    """What names the files of a run."""

    run_id: UUID
    handle: str
    stages: tuple[tuple[UUID, str], ...]
    """(id, name) of each."""
    attempts: tuple[UUID, ...]
    checkpoints: tuple[str, ...]
    """Where they are."""


def belongings(session: Session, handle: str) -> Belongings:
    """What a run owns, if it may be removed.

    Raises NotFound; Refused for a run that is alive, and for one whose checkpoint another run was told of.
    """
    run = handles.find(session, handle)
    _refuse_live(run.handle, run.status)
    places = session.scalars(select(Checkpoint.uri).where(Checkpoint.run_id == run.id)).all()
    users = retention.told_of(session, run, places)
    if users:
        raise Refused(
            f"{', '.join(users)} began from a checkpoint of {run.handle}, or evaluated it: remove "
            f"{'that run' if len(users) == 1 else 'those runs'} first"
        )
    stages = session.execute(select(Stage.id, Stage.name).where(Stage.run_id == run.id).order_by(Stage.position))
    attempts = session.scalars(
        select(Attempt.id).join(Stage, Stage.id == Attempt.stage_id).where(Stage.run_id == run.id)
    )
    return Belongings(run.id, run.handle, tuple((row.id, row.name) for row in stages), tuple(attempts), tuple(places))


def remove(db: Database, owned: Belongings, *, clock: Clock = utc_now, piece: int = PIECE) -> None:
    """Remove the run. Removed by another meanwhile is as good. Raises Refused where it has come alive since."""
    with db.read() as session:
        series = session.scalars(select(Series.id).where(Series.run_id == owned.run_id).order_by(Series.id)).all()
    for one in series:
        steps = select(Metric.step).where(Metric.series_id == one).order_by(Metric.step).limit(piece)
        _in_pieces(db, owned, delete(Metric).where(Metric.series_id == one, Metric.step.in_(steps)), clock)
    samples = select(Sample.id).where(Sample.run_id == owned.run_id).order_by(Sample.id).limit(piece)
    _in_pieces(db, owned, delete(Sample).where(Sample.id.in_(samples)), clock)
    db.transact(lambda session: _finish(session, owned, clock()))


def _in_pieces(db: Database, owned: Belongings, statement: Delete, clock: Clock) -> None:
    """Execute `statement` until it finds nothing more, each time in a transaction of its own."""

    def once(session: Session) -> int:
        return changed(session, statement) if _hold(session, owned, clock()) else 0

    while db.transact(once):
        pass


def _hold(session: Session, owned: Belongings, now: datetime) -> bool:
    """Lock the run, and keep it from being resumed before the next piece. False where it is gone."""
    status = session.scalar(select(Run.status).where(Run.id == owned.run_id).with_for_update())
    if status is None:
        return False
    _refuse_live(owned.handle, status)
    locks.acquire(session, locks.removal_lock(owned.run_id), "rlx rm", now=now, ttl_s=_HELD_S)
    return True


def _finish(session: Session, owned: Belongings, now: datetime) -> None:
    if not _hold(session, owned, now):
        return
    # Once more: a writer that had begun before the run was held may have added a point. Points have no foreign key.
    series = select(Series.id).where(Series.run_id == owned.run_id)
    session.execute(delete(Metric).where(Metric.series_id.in_(series)))
    stages = select(Stage.id).where(Stage.run_id == owned.run_id)
    session.execute(update(CacheEntry).where(CacheEntry.stage_id.in_(stages)).values(stage_id=None))
    session.execute(delete(Run).where(Run.id == owned.run_id))
    locks.release(session, locks.removal_lock(owned.run_id), "rlx rm")
    events.add(session, "run.removed", f"{owned.handle} was removed", now=now)


def _refuse_live(handle: str, status: str) -> None:
    if status not in ENDED[Run]:
        raise Refused(f"{handle} is {status}: `rlx cancel {handle}` stops it, then it can be removed")
