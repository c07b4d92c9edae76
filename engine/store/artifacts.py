"""Rows of artifacts and of the stage cache. The files themselves are `artifact_store`'s."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from engine.store.artifact_store import StoredArtifact
from engine.store.columns import table_of
from engine.store.tables import Artifact, CacheEntry, RunId, Stage
from engine.store.together import Write
from engine.store.upsert import dialect_of, insert_in


def record(session: Session, artifact: StoredArtifact, *, now: datetime) -> int:
    """The id of the artifact's row; equal content has one row, with the place it was first stored at.

    The row stays until this transaction ends, whatever `garbage` would like.
    """
    values = {
        "sha256": artifact.sha256,
        "uri": artifact.uri,
        "kind": artifact.kind,
        "bytes": artifact.bytes,
        "files": artifact.files,
        "created_at": now,
    }
    while True:
        for statement in (_added(dialect_of(session)), _KEPT_ID):
            found = session.execute(statement, values).scalar_one_or_none()
            if found is not None:
                return int(found)
        # The row that was in the way has been removed as garbage between the two statements.


@cache
def _added(dialect: str) -> Any:
    table = table_of(Artifact)
    return insert_in(dialect, table).on_conflict_do_nothing(index_elements=[table.c.sha256]).returning(table.c.id)


def of_run(session: Session, run_id: RunId) -> dict[str, Artifact]:
    """Stage name -> its artifact, in plan order."""
    rows = session.execute(
        select(Stage.name, Artifact)
        .join(Artifact, Artifact.id == Stage.artifact_id)
        .where(Stage.run_id == run_id)
        .order_by(Stage.position)
    )
    return {row.name: row.Artifact for row in rows}


def remembering(session: Session, key: str, artifact_id: int, stage_id: UUID, *, replace: bool, now: datetime) -> Write:
    """What lets `key` be answered by the artifact. What answered it before stays, unless `replace`."""
    entry = {"key": key, "artifact_id": artifact_id, "stage_id": stage_id, "created_at": now}
    return Write(_answered(dialect_of(session), replace), entry)


@cache
def _answered(dialect: str, replace: bool) -> Any:
    table = table_of(CacheEntry)
    statement = insert_in(dialect, table)
    if not replace:
        return statement.on_conflict_do_nothing(index_elements=[table.c.key])
    new = {name: statement.excluded[name] for name in ("artifact_id", "stage_id", "created_at")}
    return statement.on_conflict_do_update(index_elements=[table.c.key], set_=new)


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
