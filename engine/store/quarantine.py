"""Stages under which workers die: who is a suspect, and when one is set aside.

A stage that kills its worker takes down whatever runs beside it, again and again. A worker's death therefore counts
against every stage that it ran, as long as that stage got nowhere: an attempt that recorded a checkpoint starts the
count anew, and so does one that ended in any other way. One death short of `retries.quarantine` the stage gets a
worker for itself; if that one dies too it is set aside, and only `rlx resume` releases it. Deaths that it shared never
suffice, so a bystander is cleared by the attempt that it runs alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from engine.store.columns import table_of
from engine.store.tables import Attempt, Checkpoint, Stage, Worker
from engine.store.transitions import AttemptStatus
from engine.store.workers import WorkerStatus

HEARD_WITHIN_S = 7.5
"""A worker that gave a sign this recently is not dead, whatever became of the attempt's lease."""

NEXT_STEP = (
    "Look at what the stage does to its machine (memory, GPU, processes), mend that, and release it with `rlx resume`."
)


@dataclass(frozen=True)
class Death:
    """A worker that died while it ran an attempt at the stage."""

    worker: str
    alone: bool
    """Whether it ran nothing else."""


@dataclass(frozen=True)
class Verdict:
    """What follows from the deaths under a stage."""

    condemned: bool
    alone: bool
    """It gets its next worker for itself."""
    deaths: tuple[Death, ...] = ()

    @property
    def words(self) -> str:
        """Why the stage is set aside."""
        names = ", ".join(death.worker for death in self.deaths)
        return (
            f"quarantined: {len(self.deaths)} workers in a row died while they ran it ({names}), the last one with "
            "nothing else to run. `rlx resume` releases it"
        )


def judge(session: Session, stage: Stage, limit: int | None, *, ending: UUID, certain: bool, now: datetime) -> Verdict:
    """What is to become of a stage whose newest attempt, `ending`, is about to be recorded as lost with its worker.

    `certain` where the worker is known to be dead; else it is believed to be, unless it has been heard of.
    """
    deaths = tuple(_deaths(session, stage, ending, certain=certain, now=now))
    if limit is None or not deaths:
        return Verdict(condemned=False, alone=False, deaths=deaths)
    condemned = len(deaths) >= limit and deaths[-1].alone
    return Verdict(condemned, alone=not condemned and len(deaths) >= limit - 1, deaths=deaths)


def _deaths(session: Session, stage: Stage, ending: UUID, *, certain: bool, now: datetime) -> list[Death]:
    """The stage's newest attempts, as far back as each ended with its worker and left no checkpoint; oldest first."""
    saved = exists().where(Checkpoint.stage_id == Attempt.stage_id, Checkpoint.attempt == Attempt.number)
    newest = (
        select(Attempt.id, Attempt.status, Attempt.worker_id, Attempt.started_at, Attempt.finished_at, saved)
        .where(Attempt.stage_id == stage.id)
        .order_by(Attempt.number.desc())
        .limit(stage.failures + 1)  # no further back than the last `rlx resume`
    )
    found: list[Death] = []
    for attempt_id, status, worker_id, started, finished, progressed in session.execute(newest):
        if attempt_id == ending:
            status, finished = AttemptStatus.LOST, now
        worker = None if worker_id is None else session.get(Worker, worker_id, populate_existing=True)
        if status != AttemptStatus.LOST or progressed or worker is None or finished is None:
            break
        known = certain and not found  # only of the newest
        if not known and _heard_of(worker, finished, now):
            break
        alone = not _company(session, attempt_id, worker.id, started, finished)
        found.append(Death(f"{worker.name}, pid {worker.pid} on {worker.host}", alone))
    return found[::-1]


def _heard_of(worker: Worker, lost_at: datetime, now: datetime) -> bool:
    """Whether the worker lived on after the attempt was given up."""
    latest = min(lost_at, now - timedelta(seconds=HEARD_WITHIN_S))
    return worker.heartbeat_at > latest and worker.status != WorkerStatus.GONE


def _company(session: Session, attempt_id: UUID, worker_id: UUID, started: datetime, finished: datetime) -> bool:
    """Whether the worker ran anything else that went down with it, or is about to be found to have."""
    table = table_of(Attempt)
    gone_too = (table.c.status == AttemptStatus.LOST) & (table.c.finished_at > started)
    beside = select(table.c.id).where(
        table.c.worker_id == worker_id,
        table.c.id != attempt_id,
        table.c.started_at < finished,
        or_(table.c.status == AttemptStatus.RUNNING, gone_too),
    )
    return session.execute(beside.limit(1)).first() is not None
