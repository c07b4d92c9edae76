"""What a dead attempt left in its spool on this host, delivered for it: by its supervisor before the attempt's end
is recorded, by a worker's housekeeping while no newer attempt has begun, or by the very next attempt.

That one has to come first of all and take everything, for what it does not take over it will report again: a
spool whose stage has gone on without it is superseded, and dropped. A checkpoint counts only if it proves to be
whole, and to be this stage's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.errors import DataError, ResumeError, RlxError, StaleAttempt, Unreachable
from engine.log import get_logger
from engine.runtime.manifest import verify
from engine.runtime.reports import Checkpointed, Report, Reporter, write_all
from engine.runtime.spool import DamagedSpool, Spool, folder_of, left
from engine.store import stages
from engine.store.metric_spool import MetricSpool
from engine.store.metrics import MetricWriter
from engine.store.session import Database
from engine.store.stages import Claimed
from engine.store.tables import RunId, Stage, StageId
from engine.store.transitions import StageStatus

log = get_logger(__name__)

WAIT_S = 3.0
"""For another who is delivering the same spool: it ends at its next batch once a newer attempt has begun."""
_BATCH = 2_000


def deliver_all(root: Path, db: Database) -> int:
    """Deliver or drop what dead attempts left under `root`; how many spools were delivered. Raises Unreachable."""
    delivered = 0
    for folder, stage_id, number in left(root):
        spool = Spool.take(folder)
        if spool is None:  # its attempt lives, or another is at it
            continue
        try:
            delivered += _settle(db, spool, stage_id, number)
        finally:
            spool.close()
    return delivered


def deliver_for(root: Path, db: Database, claimed: Claimed) -> None:
    """Deliver what the ended process of an attempt left, before its end is recorded.

    Raises Unreachable, and StaleAttempt where a newer attempt has begun.
    """
    spool = Spool.take(folder_of(root, claimed.stage_id, claimed.number), within_s=WAIT_S)
    if spool is None:
        return
    try:
        _deliver(db, spool, Reporter(claimed.run_id, claimed.stage_id, claimed.number), _newest(claimed.number))
    finally:
        spool.close()


def inherit(root: Path, db: Database, claimed: Claimed) -> bool:
    """Take over what the attempt before this one left, as if it had still delivered it; whether there was anything.

    To be called before attempt `claimed` resumes and reports. Raises Unreachable, StaleAttempt.
    """
    spool = Spool.take(folder_of(root, claimed.stage_id, claimed.number - 1), within_s=WAIT_S)
    if spool is None:
        return False

    def hold(session: Session, stage_id: StageId) -> None:
        stages.fenced(session, stage_id, claimed.number)

    try:
        _deliver(db, spool, Reporter(claimed.run_id, claimed.stage_id, claimed.number - 1), hold)
    finally:
        spool.close()
    return True


def drop(root: Path, stage_id: UUID, number: int) -> None:
    """Drop what attempt `number` left: the stage goes on without it, and reports it again."""
    spool = Spool.take(folder_of(root, stage_id, number))
    if spool is not None:
        log.info("a newer attempt reports again what an older one left", extra={"folder": str(spool.folder)})
        spool.discard()


Hold = Callable[[Session, StageId], None]
"""Holds a fence until the transaction ends, or raises StaleAttempt."""


def _newest(number: int) -> Hold:
    return lambda session, stage_id: stages.newest(session, stage_id, number)


def _settle(db: Database, spool: Spool, stage_id: StageId, number: int) -> bool:
    with db.read() as session:
        row = session.execute(
            select(Stage.run_id, Stage.attempt, Stage.status).where(Stage.id == stage_id)
        ).one_or_none()
    if row is None:
        return False  # of another store that uses this home, or of a run that was deleted
    if row.attempt == number:
        try:
            return _deliver(db, spool, Reporter(RunId(row.run_id), stage_id, number), _newest(number))
        except StaleAttempt:
            return False  # a newer one has just begun, and takes over what is left
    if row.attempt == number + 1 and row.status == StageStatus.RUNNING:
        return False  # its next attempt takes it over, or drops it
    log.info("what an attempt left is superseded", extra={"folder": str(spool.folder)})
    spool.discard()
    return False


def _deliver(db: Database, spool: Spool, reporter: Reporter, hold: Hold) -> bool:
    """Everything in the spool, metrics first; whether there was anything. What the store refuses is set aside."""
    metrics = MetricSpool(spool.folder, reporter.stage_id).waiting
    if not metrics and not spool.waiting:
        return False
    try:
        if metrics:
            _deliver_metrics(db, spool, reporter, hold)
        while spool.waiting:
            batch = spool.first(_BATCH)
            reports = [report for report in batch.reports if _counts(report, reporter)]
            db.transact(partial(_write, reporter=reporter, reports=reports, hold=hold))
            spool.strike_off(batch.end)
    except Exception as error:
        if isinstance(error, RlxError) and not isinstance(error, DamagedSpool | DataError):
            raise  # the store is away, or this attempt is stale: the spool is all right
        log.exception("what an attempt left cannot be stored", extra={"set_aside": str(spool.set_aside())})
        return False
    log.info("delivered what an attempt had left", extra={"stage": str(reporter.stage_id), "attempt": reporter.number})
    return True


def _write(session: Session, *, reporter: Reporter, reports: Sequence[Report], hold: Hold) -> None:
    hold(session, reporter.stage_id)
    write_all(session, reporter, reports)


def _deliver_metrics(db: Database, spool: Spool, reporter: Reporter, hold: Hold) -> None:
    writer = MetricWriter(
        db,
        reporter.run_id,
        reporter.stage_id,
        reporter.number,
        spool.folder,
        hold=lambda session, stage_id, _: hold(session, stage_id),
    )
    if not writer.close():
        raise Unreachable("the database is away: metrics wait in the spool")


def _counts(report: Report, reporter: Reporter) -> bool:
    """Whether to write it: a checkpoint only if it is here, this attempt's at this stage, and whole."""
    if not isinstance(report, Checkpointed):
        return True
    if not report.is_there():
        return False  # retention let it go, or a newer one of the same step took its place
    path = Path(report.uri)
    own = path.parent.name == f"attempt-{reporter.number}" and path.parents[1].name.endswith(
        f"-{reporter.stage_id.hex[:8]}"
    )
    try:
        if own:
            verify(path)
            return True
        reason = "it is not this attempt's"
    except ResumeError as error:
        reason = str(error)
    log.warning("a checkpoint does not count", extra={"path": str(path), "reason": reason})
    return False
