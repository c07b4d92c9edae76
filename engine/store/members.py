"""The nodes of an attempt that several workers carry out together: who they are, where they meet, and their leases.

Node 0 is the worker that claimed the attempt: its lease is the attempt's own, and it alone reports. The others have
a row each with a lease of its own; one that runs out ends the whole attempt (`outcomes.expire`). What all of them
hold is leased in the transaction of the claim: all of it, or nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select, update
from sqlalchemy import insert as insert_into
from sqlalchemy.orm import Session

from engine.errors import StaleAttempt
from engine.plan.stage import Needs
from engine.store import lending
from engine.store.columns import table_of
from engine.store.lending import Lender
from engine.store.locks import serialise
from engine.store.queue import WAITING_COLUMNS, waiting_of
from engine.store.tables import Attempt, Lease, Member, RunId, Stage, StageId, Worker, WorkerId
from engine.store.transitions import AttemptStatus, changed


class MemberState(StrEnum):
    CALLED = "called"
    """Its devices are leased; its worker has not noticed yet."""
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True)
class Node:
    """One node: its worker's name and host."""

    worker: str
    host: str

    def __str__(self) -> str:
        return f"{self.worker} on {self.host}"


@dataclass(frozen=True)
class Gang:
    """The nodes of one attempt, as one of them sees them."""

    node: int
    """Ours, from 0."""
    nodes: tuple[Node, ...]
    token: str
    """A secret of the attempt's own: who does not know it is not let in where they meet."""
    address: str = ""
    port: int | None = None
    """Where they meet; not known to the node that opens the place."""

    def name(self, node: int) -> str:
        """`node 1 (w2 on h2)`."""
        return f"node {node} ({self.nodes[node]})"

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Gang:
        """From `asdict`'s."""
        return cls(**{**data, "nodes": tuple(Node(**node) for node in data["nodes"])})


@dataclass(frozen=True)
class Lent:
    """What one more worker lends to an attempt."""

    worker_id: WorkerId
    node: Node
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A worker is to carry out one node of another's attempt."""

    attempt_id: UUID
    stage_id: StageId
    node: int
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Membership:
    """A node of an attempt, for people."""

    attempt_id: UUID
    node: int
    worker: str
    host: str
    state: str


_M, _A, _S, _L, _W = (table_of(table) for table in (Member, Attempt, Stage, Lease, Worker))
_ADD, _LEASE = insert_into(_M), insert_into(_L)
_RUNS = select(_A.c.id).where(_A.c.id == _M.c.attempt_id, _A.c.status == AttemptStatus.RUNNING).exists()
_WAITING = select(*WAITING_COLUMNS).where(_S.c.id == bindparam("stage"))
_CALLS = (
    select(_M.c.attempt_id, _M.c.node, _A.c.stage_id)
    .join(_A, _A.c.id == _M.c.attempt_id)
    .where(_M.c.worker_id == bindparam("worker"), _M.c.state == MemberState.CALLED, _M.c.node > 0)
    .where(_A.c.status == AttemptStatus.RUNNING)
    .order_by(_A.c.started_at)
)


def find_others(session: Session, stage_id: StageId, worker: WorkerId, now: datetime) -> list[Lent] | None:
    """Whoever carries out the stage's other nodes, if `worker` claims it now; None where they are too few.

    Until this transaction ends, nobody else finds any.
    """
    serialise(session, "gangs")
    stage = waiting_of(session.execute(_WAITING, {"stage": stage_id}).one())
    found = lending.others(stage, worker, lending.lenders(session, now))
    if found is None:
        return None
    lent = [Lent(it.worker_id, Node(it.name, it.host), _free(session, it, stage.needs)) for it in found]
    return None if any(len(it.devices) < stage.needs.slots + stage.needs.gpus for it in lent) else lent


def _free(session: Session, lender: Lender, needs: Needs) -> tuple[str, ...]:
    """Devices of a worker that are not leased: its last ones, for it lends its first ones first."""
    row = session.execute(select(_W.c.slots, _W.c.gpus).where(_W.c.id == lender.worker_id)).one()
    leased = set(session.scalars(select(_L.c.device).where(_L.c.worker_id == lender.worker_id)))
    slots = [name for name in (f"slot:{index}" for index in reversed(range(row.slots))) if name not in leased]
    gpus = [name for name in (f"gpu:{gpu}" for gpu in reversed(row.gpus)) if name not in leased]
    return (*slots[: needs.slots], *gpus[: needs.gpus])


def begin(
    session: Session, attempt_id: UUID, worker: WorkerId, others: Sequence[Lent], *, now: datetime, lease_s: float
) -> Gang:
    """Enter the nodes of an attempt that `worker` has just begun, and lease what the others lend.

    Raises IntegrityError where one of the devices was leased a moment ago.
    """
    first = session.execute(select(_W.c.name, _W.c.host).where(_W.c.id == worker)).one()
    gang = Gang(0, (Node(first.name, first.host), *(it.node for it in others)), secrets.token_hex(32))
    rows: list[dict[str, Any]] = [{"worker_id": worker, "lease_expires_at": None, "state": MemberState.RUNNING}]
    until = now + timedelta(seconds=lease_s)
    rows += [{"worker_id": it.worker_id, "lease_expires_at": until, "state": MemberState.CALLED} for it in others]
    same = {"attempt_id": attempt_id, "token": gang.token}
    session.execute(_ADD, [{**same, **row, "node": node} for node, row in enumerate(rows)])
    lent = [(it.worker_id, device) for it in others for device in it.devices]
    leases = [{"attempt_id": attempt_id, "worker_id": lender, "device": device} for lender, device in lent]
    session.execute(_LEASE, leases)
    return gang


def calls(session: Session, worker: WorkerId) -> list[Call]:
    """The nodes that this worker is to carry out and has not begun with."""
    return [
        Call(row.attempt_id, StageId(row.stage_id), row.node, _devices(session, row.attempt_id, worker))
        for row in session.execute(_CALLS, {"worker": worker}).all()
    ]


def _devices(session: Session, attempt_id: UUID, worker: WorkerId) -> tuple[str, ...]:
    of = select(_L.c.device).where(_L.c.attempt_id == attempt_id, _L.c.worker_id == worker).order_by(_L.c.id)
    return tuple(session.scalars(of))


def gang_of(session: Session, attempt_id: UUID, node: int) -> Gang:
    """The nodes of an attempt as this one sees them, with the place where they meet once it is open."""
    rows = session.execute(
        select(_M.c.address, _M.c.port, _M.c.token, _W.c.name, _W.c.host)
        .join(_W, _W.c.id == _M.c.worker_id)
        .where(_M.c.attempt_id == attempt_id)
        .order_by(_M.c.node)
    ).all()
    first = rows[0]
    return Gang(node, tuple(Node(row.name, row.host) for row in rows), first.token, first.address, first.port)


def open_at(session: Session, attempt_id: UUID, address: str, port: int) -> None:
    """The first node listens there. Raises StaleAttempt where the attempt is over."""
    _of_running(session, attempt_id, 0, address=address, port=port)


def renew(session: Session, attempt_id: UUID, node: int, *, now: datetime, lease_s: float, **more: Any) -> None:
    """Renew one node's lease. Raises StaleAttempt where the attempt is over."""
    _of_running(session, attempt_id, node, lease_expires_at=now + timedelta(seconds=lease_s), **more)


def end(session: Session, attempt_id: UUID, node: int) -> None:
    """The node has nothing running any more."""
    session.execute(
        update(_M)
        .where(_M.c.attempt_id == attempt_id, _M.c.node == node)
        .values(state=str(MemberState.ENDED), lease_expires_at=None)
    )


def _of_running(session: Session, attempt_id: UUID, node: int, **values: Any) -> None:
    row = (_M.c.attempt_id == attempt_id) & (_M.c.node == node)
    if changed(session, update(_M).where(row, _RUNS).values(**values)) == 0:
        raise StaleAttempt("the attempt is over, and this node of it with it")


def overdue(session: Session, now: datetime, *, run_id: RunId | None = None) -> dict[tuple[UUID, UUID], str]:
    """Running attempts that a node has left without a word: (run, attempt) -> what is said of it."""
    found = (
        select(_S.c.run_id, _M.c.attempt_id, _M.c.node, _W.c.name, _W.c.host)
        .join(_A, _A.c.id == _M.c.attempt_id)
        .join(_S, _S.c.id == _A.c.stage_id)
        .join(_W, _W.c.id == _M.c.worker_id)
        .where(_M.c.lease_expires_at <= now, _A.c.status == AttemptStatus.RUNNING)
        .order_by(_S.c.run_id, _M.c.attempt_id, _M.c.node.desc())
    )
    if run_id is not None:
        found = found.where(_S.c.run_id == run_id)
    return {
        (row.run_id, row.attempt_id): f"node {row.node} ({Node(row.name, row.host)}) fell silent: "
        "its worker was killed, or cut off from the store"
        for row in session.execute(found)
    }


def still_overdue(session: Session, attempt_id: UUID, now: datetime) -> bool:
    """Whether a node of the attempt has still not renewed its lease."""
    late = select(_M.c.node).where(_M.c.attempt_id == attempt_id, _M.c.lease_expires_at <= now)
    return session.execute(late.limit(1)).first() is not None


def of(session: Session, attempt_ids: Collection[UUID]) -> dict[UUID, list[Membership]]:
    """Attempt -> its nodes in order; those of one node have none."""
    found: dict[UUID, list[Membership]] = {}
    rows = session.execute(
        select(_M.c.attempt_id, _M.c.node, _M.c.state, _W.c.name, _W.c.host)
        .join(_W, _W.c.id == _M.c.worker_id)
        .where(_M.c.attempt_id.in_(attempt_ids))
        .order_by(_M.c.node)
    )
    for row in rows:
        one = Membership(row.attempt_id, row.node, row.name, row.host, row.state)
        found.setdefault(row.attempt_id, []).append(one)
    return found
