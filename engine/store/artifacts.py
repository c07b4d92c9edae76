"""Rows of artifacts and of the stage cache. The files themselves are `artifact_store`'s."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from engine.store.artifact_store import StoredArtifact
from engine.store.tables import Artifact, CacheEntry, RunId, Stage
from engine.store.upsert import insert


def record(session: Session, artifact: StoredArtifact, *, now: datetime) -> int:
    """The id of the artifact's row; equal content has one row, with the place it was first stored at.

    The row stays until this transaction ends, whatever `garbage` would like.
    """
    statement = (
        insert(session, Artifact)
        .values(
            sha256=artifact.sha256,
            uri=artifact.uri,
            kind=artifact.kind,
            bytes=artifact.bytes,
            files=artifact.files,
            created_at=now,
        )
        .on_conflict_do_nothing(index_elements=[Artifact.sha256])
    )
    while True:
        session.execute(statement)
        found = session.scalars(_KEPT_ID, {"sha256": artifact.sha256}).one_or_none()
        if found is not None:
            return found
        # The row that was in the way has been removed as garbage between the two statements.


def of_run(session: Session, run_id: RunId) -> dict[str, Artifact]:
    """Stage name -> its artifact, in plan order."""
    rows = session.execute(
        select(Stage.name, Artifact)
        .join(Artifact, Artifact.id == Stage.artifact_id)
        .where(Stage.run_id == run_id)
        .order_by(Stage.position)
    )
    return {row.name: row.Artifact for row in rows}


def remember(session: Session, key: str, artifact_id: int, stage_id: UUID, *, replace: bool, now: datetime) -> None:
    """Let `key` be answered by the artifact. What answered it before stays, unless `replace`."""
    statement = insert(session, CacheEntry).values(key=key, artifact_id=artifact_id, stage_id=stage_id, created_at=now)
    if replace:
        statement = statement.on_conflict_do_update(
            index_elements=[CacheEntry.key],
            set_={"artifact_id": artifact_id, "stage_id": stage_id, "created_at": now},
        )
    else:
        statement = statement.on_conflict_do_nothing(index_elements=[CacheEntry.key])
    session.execute(statement)


def cached(session: Session, key: str) -> Artifact | None:
    """The artifact that answers `key`, if there is one. To look only: `take` is for whoever goes on to refer to it."""
    return session.scalars(_CACHED, {"key": key}).one_or_none()


def take(session: Session, key: str) -> Artifact | None:
    """`cached`, and what is found stays until this transaction ends, so that a stage may refer to it."""
    return session.scalars(_TAKE, {"key": key}).one_or_none()


_CACHED = (
    select(Artifact).join(CacheEntry, CacheEntry.artifact_id == Artifact.id).where(CacheEntry.key == bindparam("key"))
)
# The lock that a foreign key takes, before there is one: nobody waits for it but who would delete the row.
_TAKE = _CACHED.with_for_update(read=True, key_share=True, of=Artifact)
_KEPT_ID = select(Artifact.id).where(Artifact.sha256 == bindparam("sha256")).with_for_update(read=True, key_share=True)
