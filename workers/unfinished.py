"""Ends that nobody has recorded: a stage was through, but its worker died while it waited for the database.

The outcome stands in the attempt's own file, and its artifact in the store, so nothing is computed
again. An attempt whose process left no outcome is its lease's business.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select

from engine.clock import Clock, utc_now
from engine.errors import StaleAttempt
from engine.log import get_logger
from engine.runtime import left_behind
from engine.runtime.task import Task, log_tail, written
from engine.settings import Settings
from engine.store import stages
from engine.store.processes import process_started, provably_gone
from engine.store.session import Database
from engine.store.stages import Claimed
from engine.store.tables import Attempt, Worker
from engine.store.transitions import AttemptStatus

log = get_logger(__name__)


def finish_left(settings: Settings, db: Database, now: Clock = utc_now) -> int:
    """Record the ends that dead workers of this host left unrecorded; how many. Raises Unreachable."""
    finished = 0
    for path in sorted(written(settings)):
        try:
            task = Task.read(path)
            outcome = task.read_outcome()
        except FileNotFoundError:  # its own worker has just tidied up
            continue
        if task.member:
            if task.worker is not None and process_started(task.worker[0]) != task.worker[1]:
                task.clear()  # the first node reports
            continue
        if outcome is None or not _is_orphaned(db, task.claimed):
            continue
        try:
            left_behind.deliver_for(settings.spool, db, task.claimed)
            with db.write() as session:
                became = stages.finish(session, task.claimed, replace(outcome, log_tail=log_tail(task.log)), now=now())
        except StaleAttempt:
            pass  # it was given up meanwhile
        else:
            finished += 1
            fields = {"run": task.claimed.handle, "stage": task.claimed.name, "attempt": task.claimed.number}
            log.info("recorded an end that a dead worker had left", extra=fields | {"became": str(became)})
        task.clear()
    return finished


def _is_orphaned(db: Database, claimed: Claimed) -> bool:
    """Whether the attempt is this store's, and its worker is no more."""
    with db.read() as session:
        row = session.execute(
            select(Attempt.status, Worker.host, Worker.pid, Worker.pid_started)
            .join(Worker, Worker.id == Attempt.worker_id)
            .where(Attempt.id == claimed.attempt_id)
        ).one_or_none()
    if row is None:
        return False
    return row.status != AttemptStatus.RUNNING or provably_gone(row.host, row.pid, row.pid_started)
