"""Which artifacts nobody needs any more, and their removal from SQL. Their files are `artifact_sweep`'s, afterwards.

An artifact is garbage once no stage of a stored run refers to it, no cache entry leads a stage to it that is
still to run, and it has been so for the grace period: it and its cache entries are older than `cutoff`. The
check and the removal hold the artifact's row, and whoever takes an artifact from the cache holds it too: either
the stage has it, or the stage finds nothing in the cache and runs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from engine.store.tables import Artifact, Attempt, CacheEntry, Stage
from engine.store.transitions import ENDED, AttemptStatus

T = TypeVar("T")

_BATCH = 500
"""Ids a statement."""


@dataclass(frozen=True)
class Unneeded:
    """An artifact that may go."""

    id: int
    sha256: str
    uri: str
    kind: str
    bytes: int
    created_at: datetime


def cutoff(session: Session, *, now: datetime, grace_s: float) -> datetime:
    """What is older than this belongs to no attempt that may still report it.

    The grace period before now, or before the oldest running attempt began: what an attempt has put into the
    artifact store is referred to by nothing until its end is recorded, and a database may be away for long.
    """
    begun = session.scalar(select(func.min(Attempt.started_at)).where(Attempt.status == AttemptStatus.RUNNING))
    return min(now, begun or now) - timedelta(seconds=grace_s)


def unneeded(session: Session, before: datetime) -> list[Unneeded]:
    """Artifacts that may go, oldest first."""
    rows = session.execute(
        select(Artifact.id, Artifact.sha256, Artifact.uri, Artifact.kind, Artifact.bytes, Artifact.created_at)
        .where(_garbage(before))
        .order_by(Artifact.created_at, Artifact.id)
    )
    return [Unneeded(*row) for row in rows]


def forget(session: Session, ids: Collection[int], before: datetime) -> set[int]:
    """Remove those artifacts' rows and cache entries that still may go; the ids of these.

    What another transaction is taking at this moment is left for the next time.
    """
    gone: set[int] = set()
    for batch in _batches(sorted(ids)):
        held = _hold(session, batch)
        # A statement of its own, after the locks: it sees what was committed while we had none.
        garbage = set(session.scalars(select(Artifact.id).where(Artifact.id.in_(held), _garbage(before))))
        session.execute(delete(CacheEntry).where(CacheEntry.artifact_id.in_(garbage)))
        session.execute(delete(Artifact).where(Artifact.id.in_(garbage)))
        gone |= garbage
    return gone


def known(session: Session, shas: Collection[str]) -> set[str]:
    """Which of these content hashes have a row, and the last part of the place of each row."""
    found: set[str] = set()
    for batch in _batches(sorted(shas)):
        for sha256, uri in session.execute(select(Artifact.sha256, Artifact.uri).where(Artifact.sha256.in_(batch))):
            found |= {sha256, uri.rpartition("/")[2]}
    return found


def _garbage(before: datetime) -> ColumnElement[bool]:
    wanted = exists().where(
        Stage.cache_key == CacheEntry.key, Stage.status.not_in([str(status) for status in ENDED[Stage]])
    )
    return and_(
        Artifact.created_at < before,
        ~exists().where(Stage.artifact_id == Artifact.id),
        ~exists().where(CacheEntry.artifact_id == Artifact.id, or_(CacheEntry.created_at >= before, wanted)),
    )


def _hold(session: Session, ids: Sequence[int]) -> list[int]:
    """Lock the artifacts with their cache entries; those that nobody else holds. Never waits, so never in a circle."""
    held = session.scalars(
        select(Artifact.id).where(Artifact.id.in_(ids)).order_by(Artifact.id).with_for_update(skip_locked=True)
    ).all()
    mine = set(
        session.scalars(
            select(CacheEntry.key).where(CacheEntry.artifact_id.in_(held)).with_for_update(skip_locked=True)
        )
    )
    entries = session.execute(select(CacheEntry.artifact_id, CacheEntry.key).where(CacheEntry.artifact_id.in_(held)))
    busy = {artifact_id for artifact_id, key in entries if key not in mine}
    return [artifact_id for artifact_id in held if artifact_id not in busy]


def _batches(items: Sequence[T]) -> list[Sequence[T]]:
    return [items[begin : begin + _BATCH] for begin in range(0, len(items), _BATCH)]
