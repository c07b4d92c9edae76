"""What happened, in order: one sentence an event, for `rlx show` and for the autopsy."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from engine.store.columns import table_of
from engine.store.tables import Event, RunId
from engine.store.together import Write, together
from engine.store.values import storable_json, storable_text

MIRROR_FAILED, MIRRORED = "tracking.failed", "tracking.mirrored"
_ADD = insert(table_of(Event)).inline()


def add(session: Session, kind: str, message: str, **of: Any) -> None:
    """Record an event in the caller's transaction; `of` is as in `adding`."""
    together(session, adding(kind, message, **of))


def adding(
    kind: str,
    message: str,
    *,
    now: datetime,
    run_id: UUID | None = None,
    stage_id: UUID | None = None,
    attempt: int | None = None,
    worker_id: UUID | None = None,
    data: Mapping[str, Any] | None = None,
) -> Write:
    """What records an event. `kind` is a short name such as `stage.lost`."""
    return Write(
        _ADD,
        {
            "time": now,
            "run_id": run_id,
            "stage_id": stage_id,
            "attempt": attempt,
            "worker_id": worker_id,
            "kind": kind,
            "message": storable_text(message),
            "data": storable_json(data or {}),
        },
    )


def of_run(session: Session, run_id: RunId, *, limit: int = 1000) -> list[Event]:
    """The newest `limit` events of a run, oldest first."""
    newest = session.scalars(select(Event).where(Event.run_id == run_id).order_by(Event.id.desc()).limit(limit))
    return list(newest)[::-1]


def failing_mirrors(session: Session, run_id: RunId) -> dict[str, Event]:
    """The bridges to other tools that failed last: by name, what was said of them."""
    kinds = (MIRROR_FAILED, MIRRORED)
    found = session.scalars(select(Event).where(Event.run_id == run_id, Event.kind.in_(kinds)).order_by(Event.id))
    newest = {event.data["bridge"]: event for event in found}
    return {bridge: event for bridge, event in newest.items() if event.kind == MIRROR_FAILED}
