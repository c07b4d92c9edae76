"""Which checkpoints may go by count, age and bytes, and which are needed whatever the limits say.

`surplus` is pure: rows in, rows out. `forget` asks once more, with the run locked, before it removes a row; the
files are the caller's to remove, afterwards. While a stage runs it keeps its own shelf in order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

from sqlalchemy import Text, cast, delete, select
from sqlalchemy.orm import Session

from engine.store.readiness import lock_run
from engine.store.tables import Attempt, Checkpoint, Run, Stage, Worker
from engine.store.transitions import ENDED, StageStatus

BEST = "best"
_CLOCKS = timedelta(hours=1)
"""By which the clocks of hosts may differ."""


@dataclass(frozen=True)
class Limits:
    """What retention is asked for; a checkpoint may go by any of these. None is no limit."""

    keep: int | None = None
    """Of every stage the newest so many, and the best."""
    older_than_s: float | None = None
    max_bytes: int | None = None
    """Of all checkpoints together; the oldest go first."""


@dataclass(frozen=True)
class Shelved:
    """A checkpoint, and all that decides whether it may go."""

    id: int
    run_id: UUID
    handle: str
    stage: str
    step: int
    labels: tuple[str, ...]
    uri: str
    bytes: int
    created_at: datetime
    host: str | None = None
    """Of the worker that wrote it."""
    live: bool = False
    """Its run has not ended."""
    unfinished: bool = False
    """Its stage did not succeed: the run may be resumed."""
    tagged: bool = False
    referred: bool = False
    """A stage of a stored run was told of it: `run:HANDLE@label`, `rlx eval`."""
    newest: bool = False
    """Of its stage."""

    @property
    def needed(self) -> str | None:
        """Why it stays whatever the limits; None where it may go."""
        if self.live:
            return "its run is alive"
        if self.unfinished and self.newest:
            return "`rlx resume` goes on from it"
        if self.tagged and self.labels:
            return "it is labelled, and its run has a tag"
        if self.referred:
            return "another run refers to it"
        return None


def surplus(shelved: Collection[Shelved], limits: Limits, *, now: datetime) -> list[tuple[Shelved, str]]:
    """The checkpoints that may go, oldest first, each with the limit that says so."""
    free = sorted((one for one in shelved if one.needed is None), key=_age)
    newer = _newer(shelved)
    chosen = {one.id: reason for one in free if (reason := _over(one, newer[one.id], limits, now)) is not None}
    if limits.max_bytes is not None:
        total = sum(one.bytes for one in shelved if one.id not in chosen)
        # What nobody labelled goes before what somebody did.
        for one in sorted(free, key=lambda one: (bool(one.labels), *_age(one))):
            if total <= limits.max_bytes:
                break
            if one.id not in chosen:
                chosen[one.id] = "over the bytes allowed"
                total -= one.bytes
    return [(one, chosen[one.id]) for one in free if one.id in chosen]


def shelved(session: Session, run_id: UUID | None = None, *, since: datetime | None = None) -> list[Shelved]:
    """Every checkpoint of one run, or of all, in plan order and then by step.

    With `since`, only what was submitted from then on is asked whether it refers to one.
    """
    wanted = (
        select(Checkpoint, Run.handle, Run.status, Run.tags, Stage.name, Stage.status, Worker.host)
        .join(Stage, Stage.id == Checkpoint.stage_id)
        .join(Run, Run.id == Checkpoint.run_id)
        .join(Attempt, (Attempt.stage_id == Stage.id) & (Attempt.number == Checkpoint.attempt), isouter=True)
        .join(Worker, Worker.id == Attempt.worker_id, isouter=True)
        .order_by(Run.submitted_at, Run.id, Stage.position, Checkpoint.step)
    )
    if run_id is not None:
        wanted = wanted.where(Checkpoint.run_id == run_id)
    rows = session.execute(wanted).all()
    newest = {checkpoint.stage_id: checkpoint.id for checkpoint, *_ in rows}
    referred = {path for _, _, paths in _told(session, since) for path in paths} if rows else set()
    return [
        Shelved(
            id=checkpoint.id,
            run_id=checkpoint.run_id,
            handle=handle,
            stage=name,
            step=checkpoint.step,
            labels=tuple(checkpoint.labels),
            uri=checkpoint.uri,
            bytes=checkpoint.bytes,
            created_at=checkpoint.created_at,
            host=host,
            live=run_status not in ENDED[Run],
            unfinished=status != StageStatus.SUCCEEDED,
            tagged=bool(tags),
            referred=checkpoint.uri in referred,
            newest=newest[checkpoint.stage_id] == checkpoint.id,
        )
        for checkpoint, handle, run_status, tags, name, status, host in rows
    ]


def forget(session: Session, run_id: UUID, ids: Collection[int], *, looked_at: datetime | None = None) -> set[int]:
    """Remove those rows of one run that still may go; the ids of these. The run cannot come alive meanwhile.

    `looked_at`: when they were found; who refers to them by then has been asked, in all the store, once.
    """
    lock_run(session, run_id)
    since = None if looked_at is None else looked_at - _CLOCKS
    free = {one.id for one in shelved(session, run_id, since=since) if one.id in ids and one.needed is None}
    session.execute(delete(Checkpoint).where(Checkpoint.id.in_(free)))
    return free


def told_of(session: Session, run: Run, places: Collection[str]) -> list[str]:
    """Handles of other runs with a stage that was told of one of these folders of `run`, or of something below."""
    told = _told(session, run.submitted_at - _CLOCKS)
    return sorted({handle for run_id, handle, paths in told if run_id != run.id and paths & set(places)})


def _told(session: Session, since: datetime | None) -> Iterator[tuple[UUID, str, set[str]]]:
    """Every stage that was told of a folder: its run's id and handle, these folders, and those above them."""
    told = (
        select(Stage.run_id, Run.handle, Stage.extra)
        .join(Run, Run.id == Stage.run_id)
        .where(cast(Stage.extra, Text).like('%path"%'))
    )
    if since is not None:
        told = told.where(Run.submitted_at >= since)
    for run_id, handle, extra in session.execute(told):
        paths = [text for text in _texts(extra) if text.startswith("/")]
        yield run_id, handle, {*paths, *(str(parent) for path in paths for parent in PurePosixPath(path).parents)}


def _over(one: Shelved, newer: int, limits: Limits, now: datetime) -> str | None:
    """Which limit of count or age lets it go, if any; `newer` checkpoints of its stage came after it."""
    if limits.keep is not None and newer >= limits.keep and BEST not in one.labels:
        return f"not among the newest {limits.keep}"
    if limits.older_than_s is not None and one.created_at < now - timedelta(seconds=limits.older_than_s):
        return "older than allowed"
    return None


def _newer(shelved: Collection[Shelved]) -> dict[int, int]:
    """Id -> how many of its stage are newer."""
    counts: dict[tuple[UUID, str], int] = {}
    found = {}
    for one in sorted(shelved, key=lambda one: -one.step):
        shelf = (one.run_id, one.stage)
        found[one.id] = counts.get(shelf, 0)
        counts[shelf] = found[one.id] + 1
    return found


def _age(one: Shelved) -> tuple[datetime, int]:
    return one.created_at, one.id


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
