"""Who lends what: the worker processes, and whether they are alive."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from engine.store.tables import Worker, WorkerId

ALIVE_WITHIN_S = 15.0


class WorkerStatus(StrEnum):
    ALIVE = "alive"
    DRAINING = "draining"
    """Takes no new stage and leaves when it has none."""
    GONE = "gone"


def register(
    session: Session,
    *,
    name: str,
    host: str,
    pid: int,
    pid_started: float | None,
    queues: Sequence[str],
    slots: int,
    gpus: Sequence[int | str] = (),
    run_id: UUID | None = None,
    now: datetime,
) -> WorkerId:
    """Enter a worker process that has just started. `run_id` where it serves that run alone."""
    worker = Worker(
        id=uuid4(),
        name=name,
        host=host,
        pid=pid,
        pid_started=pid_started,
        queues=list(queues),
        slots=slots,
        gpus=list(gpus),
        status=WorkerStatus.ALIVE,
        run_id=run_id,
        started_at=now,
        heartbeat_at=now,
    )
    session.add(worker)
    session.flush()
    return WorkerId(worker.id)


def heartbeat(session: Session, worker_id: WorkerId, *, now: datetime, status: str = WorkerStatus.ALIVE) -> None:
    """Say that the worker lives. One that was taken for gone is back with this."""
    session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(heartbeat_at=now, status=str(status))
        .execution_options(synchronize_session=False)
    )


def alive(session: Session, now: datetime, *, within_s: float = ALIVE_WITHIN_S) -> list[Worker]:
    """Workers that are not gone and gave a sign within `within_s`, oldest first."""
    since = now - timedelta(seconds=within_s)
    return list(
        session.scalars(
            select(Worker)
            .where(Worker.heartbeat_at >= since, Worker.status != WorkerStatus.GONE)
            .order_by(Worker.started_at, Worker.id)
        )
    )


def mark_gone(session: Session, worker_id: WorkerId) -> None:
    """The worker has left; its stages have been handed back or will be when their leases run out."""
    session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(status=WorkerStatus.GONE)
        .execution_options(synchronize_session=False)
    )
