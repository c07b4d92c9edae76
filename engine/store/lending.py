"""Who lends what to whom: the cluster as one worker sees it when it decides what to start.

From this follow a user's share and the one worker that keeps its free devices for a stage too large for what is
free anywhere. Every worker decides for itself from the same rows; there is no scheduler that could be down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import case, delete, func, or_, select
from sqlalchemy.orm import Session

from engine.plan.stage import Needs
from engine.store import workers
from engine.store.columns import table_of
from engine.store.processes import provably_gone
from engine.store.queue import WAITING_COLUMNS, Waiting, waiting_of
from engine.store.tables import Attempt, Lease, Reservation, Stage, StageId, WorkerId
from engine.store.transitions import StageStatus
from engine.store.upsert import insert
from engine.store.workers import WorkerStatus

KEPT_FOR_S = 15.0
"""A reservation lapses this long after its worker last renewed it."""


@dataclass(frozen=True)
class Lender:
    """A worker that is alive, what it lends, and who holds it."""

    worker_id: WorkerId
    name: str
    host: str
    queues: frozenset[str]
    total: Needs
    held: Mapping[str, Needs] = field(default_factory=dict)
    """User -> what the user's attempts have leased here."""
    open: bool = True
    """False while it drains: it takes no new stage."""
    run_id: UUID | None = None
    """The one run that it serves, if it serves one alone."""
    keeps: Waiting | None = None
    """The stage that it keeps its free devices for."""
    seen_at: datetime | None = None
    pid: int | None = None
    pid_started: float | None = None

    @property
    def free(self) -> Needs:
        """What is not leased."""
        return self.total - sum(self.held.values(), Needs())

    def serves(self, stage: Waiting) -> bool:
        """Whether it would take such a stage if all its devices were free."""
        wanted = stage.queue in self.queues if self.run_id is None else stage.run_id == self.run_id
        return wanted and self.open and stage.needs.within(self.total)

    def joins(self, stage: Waiting) -> bool:
        """Whether it could carry out a node of the stage now, beside what it keeps for a stage that comes first."""
        first = self.keeps is not None and not self.keeps_for(stage) and self.keeps.before(stage)
        left = self.free - self.keeps.needs if first and self.keeps is not None else self.free
        # One that died with an earlier attempt has not been heard of since.
        heard = stage.attempt == 0 or self.seen_at is None or self.seen_at > stage.ready_at
        dead = self.pid is not None and provably_gone(self.host, self.pid, self.pid_started)
        return self.serves(stage) and stage.needs.within(left) and heard and not dead

    def keeps_for(self, stage: Waiting) -> bool:
        """Whether it is this stage that it keeps its free devices for."""
        return self.keeps is not None and self.keeps.stage_id == stage.stage_id

    def lacks(self, stage: Waiting) -> tuple[int, int]:
        """How many GPUs, and how many slots, have to come free before the stage fits."""
        lacking = stage.needs - self.free
        return lacking.gpus, lacking.slots


def lenders(session: Session, now: datetime) -> list[Lender]:
    """Every worker that is alive, oldest first."""
    alive = workers.alive(session, now)
    held = _held(session, [worker.id for worker in alive])
    kept = _kept(session, now)
    return [
        Lender(
            WorkerId(worker.id),
            worker.name,
            worker.host,
            frozenset(worker.queues),
            Needs(worker.slots, len(worker.gpus)),
            held.get(worker.id, {}),
            worker.status == WorkerStatus.ALIVE and not worker.drain,
            worker.run_id,
            kept.get(worker.id),
            worker.heartbeat_at,
            worker.pid,
            worker.pid_started,
        )
        for worker in alive
    ]


def _held(session: Session, worker_ids: Sequence[UUID]) -> dict[UUID, dict[str, Needs]]:
    found: dict[UUID, dict[str, Needs]] = {}
    if worker_ids:
        of = _HELD.where(_L.c.worker_id.in_(worker_ids))
        for worker_id, user, gpus, devices in session.execute(of):
            found.setdefault(worker_id, {})[user] = Needs(devices - gpus, gpus)
    return found


_L, _A, _S, _R = (table_of(table) for table in (Lease, Attempt, Stage, Reservation))
_HELD = (
    select(_L.c.worker_id, _S.c.user, func.sum(case((_L.c.device.startswith("gpu:"), 1), else_=0)), func.count())
    .join(_A, _A.c.id == _L.c.attempt_id)
    .join(_S, _S.c.id == _A.c.stage_id)
    .group_by(_L.c.worker_id, _S.c.user)
)
_KEPT = (
    select(_R.c.worker_id, *WAITING_COLUMNS).join(_S, _S.c.id == _R.c.stage_id).where(_S.c.status == StageStatus.READY)
)


def _kept(session: Session, now: datetime) -> dict[UUID, Waiting]:
    rows = session.execute(_KEPT.where(_R.c.expires_at > now, or_(_S.c.not_before.is_(None), _S.c.not_before <= now)))
    return {row.worker_id: waiting_of(row) for row in rows}


def share(cluster: Collection[Lender], queues: Collection[str], user: str, more: Needs) -> float:
    """The user's dominant share of what the workers of these queues lend, if the user held `more` on top.

        s_u = max over devices d of  held_u(d) / lent(d)

    Dominant resource fairness (Ghodsi et al., NSDI 2011): who has the least dominant share goes first, whether it
    is slots or GPUs that the user's stages are short of. 0 where nothing is lent.
    """
    lending = [lender for lender in cluster if lender.run_id is None and lender.queues & frozenset(queues)]
    held = sum((lender.held.get(user, Needs()) for lender in lending), more)
    total = sum((lender.total for lender in lending), Needs())
    return max(held.slots / total.slots if total.slots else 0.0, held.gpus / total.gpus if total.gpus else 0.0)


def should_keep(stage: Waiting, me: WorkerId, free: Needs, cluster: Sequence[Lender]) -> bool:
    """Whether worker `me`, with `free` left, is the one to keep that for a stage that it could run, but not now.

    One worker keeps for a stage; and of workers that could stand in for each other only one at a time keeps at all, so
    that the rest of the cluster goes on with small stages. It is the one that lacks least; another takes over
    once it lacks strictly less, which happens only so often. A stage of one device needs none of it: it takes
    the next that comes free.
    """
    if stage.nodes == 1 and stage.needs.slots <= 1 and stage.needs.gpus <= 1:
        return False
    able = {lender.worker_id: lender for lender in cluster if lender.serves(stage)}
    if me not in able:
        return False
    # What it has just lent is not leased in the store yet.
    mine = able[me] = replace(able[me], held={"": able[me].total - free})
    if stage.nodes > 1:
        return _keeps_with_others(stage, mine, able)
    holder = next((lender for lender in able.values() if lender.keeps_for(stage)), None)
    if holder is not None:
        return holder is mine or (_may_begin(mine, stage) and mine.lacks(stage) < holder.lacks(stage))
    standing_in = [lender.keeps for lender in able.values() if lender.keeps is not None and mine.serves(lender.keeps)]
    if not _may_begin(mine, stage) or any(kept.priority >= stage.priority for kept in standing_in):
        return False
    candidates = [lender for lender in able.values() if lender.free.slots and _may_begin(lender, stage)]
    return min(candidates, key=lambda lender: lender.lacks(stage), default=None) is mine


def _keeps_with_others(stage: Waiting, mine: Lender, able: Mapping[WorkerId, Lender]) -> bool:
    """The same for a stage of several nodes: as many workers keep for it, those that lack least."""
    keeping = [lender for lender in able.values() if lender.keeps_for(stage)]
    if mine in keeping:
        return True
    missing = stage.nodes - len(keeping)
    first = [lender.keeps for lender in able.values() if lender.keeps is not None and lender.keeps.nodes > 1]
    if missing <= 0 or len(able) < stage.nodes or any(kept.before(stage) for kept in first):
        return False
    begin = [it for it in able.values() if it.free.slots and not it.keeps_for(stage) and _may_begin(it, stage)]
    return mine in sorted(begin, key=lambda lender: lender.lacks(stage))[:missing]


def others(stage: Waiting, me: WorkerId, cluster: Sequence[Lender]) -> list[Lender] | None:
    """The workers that would carry out the other nodes of a stage if `me` claimed it now; None where they are too few.

    Those that keep for it first, then those of other hosts.
    """
    host = next((lender.host for lender in cluster if lender.worker_id == me), None)
    able = [lender for lender in cluster if lender.worker_id != me and lender.joins(stage)]
    able.sort(key=lambda lender: (not lender.keeps_for(stage), lender.host == host))
    return able[: stage.nodes - 1] if len(able) >= stage.nodes - 1 else None


def _may_begin(lender: Lender, stage: Waiting) -> bool:
    """Whether it keeps for nobody, or for a stage of lower priority, which then has to wait."""
    return lender.keeps is None or lender.keeps.priority < stage.priority


def keep(session: Session, worker_id: WorkerId, stage_id: StageId | None, *, now: datetime) -> None:
    """Record what the worker keeps its free devices for; with None, that it keeps them for nobody.

    For a stage of one node, another worker that kept for it does so no longer.
    """
    mine = _R.c.worker_id == worker_id
    alone = select(_S.c.id).where(_S.c.id == stage_id, _S.c.nodes == 1).scalar_subquery()
    session.execute(delete(_R).where(mine if stage_id is None else or_(mine, _R.c.stage_id == alone)))
    if stage_id is not None:
        statement = insert(session, Reservation).values(
            stage_id=stage_id, worker_id=worker_id, expires_at=now + timedelta(seconds=KEPT_FOR_S)
        )
        session.execute(statement.on_conflict_do_nothing())
