"""Who lends what: the worker processes, whether they are alive, and whether they were told to leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import literal, select, update
from sqlalchemy.orm import Session

from engine.errors import NotFound, Refused
from engine.store.locks import serialise
from engine.store.processes import provably_gone
from engine.store.tables import Attempt, Lease, Member, Run, Stage, Worker, WorkerId
from engine.store.transitions import AttemptStatus

ALIVE_WITHIN_S = 15.0


class WorkerStatus(StrEnum):
    ALIVE = "alive"
    DRAINING = "draining"
    """Takes no new stage and leaves when it has none."""
    GONE = "gone"


class Drain(StrEnum):
    """How a worker was told to leave."""

    NO = ""
    NOW = "now"
    """Its stages stop at a checkpoint and go back to the queue."""
    AFTER_CURRENT = "after-current"
    """What runs is carried to its end."""


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
    """Enter a worker process that has just started. `run_id` where it serves that run alone.

    A name that a living worker bears gets a number. Raises Refused where a GPU is lent on this host already.
    """
    serialise(session, "workers")
    living = [
        worker for worker in alive(session, now) if not provably_gone(worker.host, worker.pid, worker.pid_started)
    ]
    for other in living:
        if twice := [str(gpu) for gpu in gpus if other.host == host and str(gpu) in map(str, other.gpus)]:
            raise Refused(
                f"GPU {', '.join(twice)} of {host} {'is' if len(twice) == 1 else 'are'} lent by worker {other.name} "
                f"(pid {other.pid}) already, and a GPU lent twice is oversubscribed: give --gpus others, or "
                f"end that one first with `rlx worker drain {other.name} --wait`"
            )
    worker = Worker(
        id=uuid4(),
        name=_free_name(name, {worker.name for worker in living}),
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
        drain=Drain.NO,
    )
    session.add(worker)
    session.flush()
    return WorkerId(worker.id)


def _free_name(name: str, taken: Collection[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def lent_gpus(session: Session, host: str, now: datetime) -> set[str]:
    """The GPUs that living workers of this host lend. Until this transaction ends, no other worker enters."""
    serialise(session, "workers")
    return {str(gpu) for worker in _living(session, now) if worker.host == host for gpu in worker.gpus}


def _living(session: Session, now: datetime) -> list[Worker]:
    """`alive`, without those of this host whose process is no more."""
    return [worker for worker in alive(session, now) if not provably_gone(worker.host, worker.pid, worker.pid_started)]


def heartbeat(session: Session, worker_id: WorkerId, *, now: datetime, status: str = WorkerStatus.ALIVE) -> Drain:
    """Say that the worker lives, and learn whether it was told to leave. One taken for gone is back with this."""
    drain = session.scalar(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(heartbeat_at=now, status=str(status))
        .returning(Worker.drain)
        .execution_options(synchronize_session=False)
    )
    return Drain(drain or "")


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


def slots_by_queue(session: Session, now: datetime) -> dict[str, int]:
    """Queue -> the slots of all living workers that listen to it."""
    found: Counter[str] = Counter()
    for worker in alive(session, now):
        found.update(dict.fromkeys(worker.queues, worker.slots))
    return found


def drain(session: Session, name: str | None, how: Drain, *, now: datetime) -> list[Worker]:
    """Tell the worker of this name (or a unique beginning of it), or with None every one that lives, to leave.

    Returns those that were told. Raises NotFound where no living worker answers to the name, or several might.
    """
    living = alive(session, now)
    chosen = [worker for worker in living if name is None or worker.name == name]
    chosen = chosen or [worker for worker in living if worker.name.startswith(name or "")]
    names = ", ".join(sorted(worker.name for worker in chosen or living))
    if name is not None and len(chosen) > 1:
        raise NotFound(f"{name!r} begins the names of several workers: {names}. Write more of the one you mean.")
    if name is not None and not chosen:
        raise NotFound(f"no living worker is called {name!r}. " + (f"Alive: {names}." if names else "None is alive."))
    for worker in chosen:
        worker.drain = how
    session.flush()
    return chosen


@dataclass(frozen=True)
class Held:
    """An attempt that a worker works on, and what it has leased for it."""

    handle: str
    stage: str
    number: int
    user: str
    devices: tuple[str, ...]
    started_at: datetime
    node: int = 0
    nodes: int = 1
    """Which of the nodes that carry it out together the worker is."""


def held(session: Session, worker_ids: Collection[UUID]) -> dict[UUID, list[Held]]:
    """Worker -> the attempts that run on it, or a node of them, oldest first."""
    what = (Attempt.id, Attempt.number, Attempt.started_at, Stage.name, Run.handle, Run.user)
    running = (
        select(Attempt.worker_id.label("worker"), literal(0).label("node"), Stage.nodes, *what)
        .join(Stage, Stage.id == Attempt.stage_id)
        .join(Run, Run.id == Stage.run_id)
        .where(Attempt.worker_id.in_(worker_ids), Attempt.status == AttemptStatus.RUNNING)
    )
    joined = (
        select(Member.worker_id.label("worker"), Member.node, Stage.nodes, *what)
        .join(Attempt, Attempt.id == Member.attempt_id)
        .join(Stage, Stage.id == Attempt.stage_id)
        .join(Run, Run.id == Stage.run_id)
        .where(Member.worker_id.in_(worker_ids), Member.node > 0, Attempt.status == AttemptStatus.RUNNING)
    )
    rows = [*session.execute(running), *session.execute(joined)]
    devices: dict[tuple[UUID, UUID], list[str]] = {}
    leases = select(Lease.worker_id, Lease.attempt_id, Lease.device).where(Lease.worker_id.in_(worker_ids))
    for worker_id, attempt_id, device in session.execute(leases.order_by(Lease.id)):
        devices.setdefault((worker_id, attempt_id), []).append(device)
    found: dict[UUID, list[Held]] = {}
    for row in sorted(rows, key=lambda row: (row.started_at, row.id)):
        lent = tuple(devices.get((row.worker, row.id), ()))
        one = Held(row.handle, row.name, row.number, row.user, lent, row.started_at, row.node, row.nodes)
        found.setdefault(row.worker, []).append(one)
    return found


def mark_gone(session: Session, worker_id: WorkerId) -> None:
    """The worker has left; its stages have been handed back or will be when their leases run out."""
    session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(status=WorkerStatus.GONE)
        .execution_options(synchronize_session=False)
    )
