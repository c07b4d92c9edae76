"""Attempts whose worker has died on this host: who they are, and how a worker that comes after makes one its own.

The attempt stays what it was, number and all, for its process is the same and goes on writing behind the same
fence. Whether that process lives is the caller's to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from engine.errors import Refused
from engine.store import events
from engine.store.columns import table_of
from engine.store.processes import host_name, provably_gone
from engine.store.tables import Attempt, Lease, Stage, Worker, WorkerId
from engine.store.transitions import AttemptStatus, changed

Gone = Callable[[str, int, float | None], bool]


@dataclass(frozen=True)
class Orphan:
    """A running attempt without its worker."""

    attempt_id: UUID
    run_id: UUID
    worker_id: UUID
    worker_pid: int
    """The dead one's."""
    devices: tuple[str, ...]
    """What it was lent, such as `slot:0`, `gpu:3`."""
    pid: int | None
    pid_started: float | None
    started_at: datetime


def orphans(session: Session, *, run_id: UUID | None = None, gone: Gone = provably_gone) -> list[Orphan]:
    """Running attempts of workers that were on this host and are gone; oldest first.

    With `run_id` only of those that served this run alone.
    """
    found = (
        select(Attempt, Stage.run_id, Worker)
        .join(Stage, Stage.id == Attempt.stage_id)
        .join(Worker, Worker.id == Attempt.worker_id)
        .where(Attempt.status == AttemptStatus.RUNNING, Worker.host == host_name())
        .order_by(Attempt.started_at, Attempt.id)
    )
    if run_id is not None:
        found = found.where(Worker.run_id == run_id)
    return [
        Orphan(
            attempt_id=attempt.id,
            run_id=run,
            worker_id=worker.id,
            worker_pid=worker.pid,
            devices=tuple(session.scalars(select(Lease.device).where(Lease.attempt_id == attempt.id))),
            pid=attempt.pid,
            pid_started=attempt.pid_started,
            started_at=attempt.started_at,
        )
        for attempt, run, worker in session.execute(found).all()
        if gone(worker.host, worker.pid, worker.pid_started)
    ]


def adopt(
    session: Session, orphan: Orphan, *, worker: WorkerId, devices: Sequence[str], now: datetime, lease_s: float
) -> bool:
    """Make the attempt `worker`'s, with `devices` of its own. False where it is over, or another was first.

    Raises Refused where one of the devices is leased already.
    """
    table = table_of(Attempt)
    mine = update(table).where(
        table.c.id == orphan.attempt_id,
        table.c.status == str(AttemptStatus.RUNNING),
        table.c.worker_id == orphan.worker_id,
    )
    if changed(session, mine.values(worker_id=worker, lease_expires_at=now + timedelta(seconds=lease_s))) == 0:
        return False
    leases = table_of(Lease)
    session.execute(delete(leases).where(leases.c.attempt_id == orphan.attempt_id))
    rows = [{"attempt_id": orphan.attempt_id, "worker_id": worker, "device": device} for device in devices]
    if rows:
        try:
            session.execute(insert(leases), rows)
        except IntegrityError as error:
            raise Refused(f"one of {', '.join(devices)} is leased to another attempt of this worker") from error
    stage, number = session.execute(
        select(Stage, Attempt.number).join(Attempt, Attempt.stage_id == Stage.id).where(Attempt.id == orphan.attempt_id)
    ).one()
    events.add(
        session,
        "stage.adopted",
        f"{stage.name} goes on under a new worker: its old one had died",
        now=now,
        run_id=orphan.run_id,
        stage_id=stage.id,
        attempt=number,
        worker_id=worker,
        data={"devices": list(devices)},
    )
    return True
