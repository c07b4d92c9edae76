"""The states of runs, stages and attempts, the moves between them, and the only function that makes one.

A move is a compare-and-swap: it names the states it expects and happens in one UPDATE, or not at all. Who
may move what, and what else happens then, is decided by `stages`, `outcomes`, `readiness` and `runs`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import CursorResult, Update, bindparam, or_, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from engine.store.columns import table_of
from engine.store.tables import Attempt, Run, Stage


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    """Asked to stop; some stage has not left yet."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StageStatus(StrEnum):
    WAITING = "waiting"
    """For the artifact of another stage."""
    READY = "ready"
    """To be claimed."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptStatus(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"
    """Its lease ran out: the worker died, or could not reach the store for too long."""
    CANCELLED = "cancelled"
    """Stopped on request: the run was cancelled, or its worker had to go (the stage is then ready again)."""


Status = RunStatus | StageStatus | AttemptStatus

ALLOWED: Mapping[type[Any], Mapping[Status, frozenset[Status]]] = {
    Run: {
        RunStatus.QUEUED: frozenset(
            # Straight to an end: every stage came from the cache, or none had begun when it was cancelled.
            {RunStatus.RUNNING, RunStatus.STOPPING, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}
        ),
        RunStatus.RUNNING: frozenset({RunStatus.STOPPING, RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
        RunStatus.STOPPING: frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
        RunStatus.SUCCEEDED: frozenset(),
        # Only `rlx resume` leads out of these two.
        RunStatus.FAILED: frozenset({RunStatus.QUEUED}),
        RunStatus.CANCELLED: frozenset({RunStatus.QUEUED}),
    },
    Stage: {
        StageStatus.WAITING: frozenset({StageStatus.READY, StageStatus.SUCCEEDED, StageStatus.CANCELLED}),
        # Straight to succeeded: from the cache.
        StageStatus.READY: frozenset({StageStatus.RUNNING, StageStatus.SUCCEEDED, StageStatus.CANCELLED}),
        StageStatus.RUNNING: frozenset(
            {StageStatus.READY, StageStatus.SUCCEEDED, StageStatus.FAILED, StageStatus.CANCELLED}
        ),
        StageStatus.SUCCEEDED: frozenset(),
        # Only `rlx resume` leads out of these two.
        StageStatus.FAILED: frozenset({StageStatus.WAITING}),
        StageStatus.CANCELLED: frozenset({StageStatus.WAITING}),
    },
    Attempt: {
        AttemptStatus.RUNNING: frozenset(
            {AttemptStatus.SUCCEEDED, AttemptStatus.FAILED, AttemptStatus.LOST, AttemptStatus.CANCELLED}
        ),
        AttemptStatus.SUCCEEDED: frozenset(),
        AttemptStatus.FAILED: frozenset(),
        AttemptStatus.LOST: frozenset(),
        AttemptStatus.CANCELLED: frozenset(),
    },
}

ENDED: Mapping[type[Any], frozenset[Status]] = {
    Run: frozenset({RunStatus.SUCCEEDED, RunStatus.FAILED, RunStatus.CANCELLED}),
    Stage: frozenset({StageStatus.SUCCEEDED, StageStatus.FAILED, StageStatus.CANCELLED}),
    Attempt: frozenset(AttemptStatus) - {AttemptStatus.RUNNING},
}


def move(
    session: Session,
    row_type: type[Run] | type[Stage] | type[Attempt],
    row_id: UUID,
    to: Status,
    *,
    expect: Collection[Status],
    newest: int | None = None,
    where: Collection[ColumnElement[bool]] = (),
    **values: Any,
) -> bool:
    """Move one row to `to` and set `values`, if it is in one of `expect` and meets `where`. True where it was.

    With `newest`, only a stage whose newest attempt has that number. Raises ValueError for a move that `ALLOWED` does
    not have, whatever the row's state: a bug of the caller.
    """
    _check(row_type, to, expect)
    statement = _swap(row_type, to, tuple(expect), newest is not None, tuple(values))
    parameters = {f"new_{name}": value for name, value in values.items()} | {"row": row_id}
    if newest is not None:
        parameters["newest"] = newest
    return changed(session, statement.where(*where) if where else statement, parameters) == 1


def move_all(
    session: Session,
    row_type: type[Run] | type[Stage] | type[Attempt],
    to: Status,
    *,
    expect: Collection[Status],
    rows: Mapping[UUID, Mapping[str, Any]],
) -> None:
    """`move` for many rows, each with new values under the same names; those not in one of `expect` stay."""
    _check(row_type, to, expect)
    if rows:
        names = tuple(next(iter(rows.values())))
        parameters = [
            {"row": row_id} | {f"new_{name}": value for name, value in values.items()}
            for row_id, values in rows.items()
        ]
        session.execute(_swap(row_type, to, tuple(expect), False, names), parameters)


def _check(row_type: type[Any], to: Status, expect: Collection[Status]) -> None:
    for status in expect:
        if to not in ALLOWED[row_type][status]:
            raise ValueError(f"{row_type.__name__} never moves from {status} to {to}")


@cache
def _swap(row_type: type[Any], to: Status, expect: tuple[Status, ...], fenced: bool, names: tuple[str, ...]) -> Update:
    """The UPDATE of a move, built once: to build it costs as much as to carry it out."""
    columns = table_of(row_type).c
    swap = update(table_of(row_type)).where(
        columns.id == bindparam("row"), or_(*(columns.status == str(status) for status in expect))
    )
    if fenced:
        swap = swap.where(columns.attempt == bindparam("newest"))
    new = {name: bindparam(f"new_{name}", type_=columns[name].type) for name in names}
    return swap.values(status=str(to), **new)


def changed(session: Session, statement: Any, parameters: Mapping[str, Any] | None = None) -> int:
    """Execute an UPDATE or DELETE; the number of rows it touched."""
    result = session.execute(statement, parameters)
    assert isinstance(result, CursorResult)
    return result.rowcount
