"""What lies in a home folder and belongs to nobody any more: found by asking SQL whose it is, and by its age.

What attempts that have ended had of their own, checkpoints that no row knows and drafts that a crash left,
logs of runs that were removed, spools of stages that are gone or delivered, fetched copies of artifacts that
are no more. Which rows may go is the store's to say (`garbage`, `retention`, `removal`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.runtime.task import places as places_of
from engine.runtime.task import shelf_name
from engine.settings import Settings
from engine.store import garbage
from engine.store.artifact_sweep import measure, remove
from engine.store.removal import Belongings
from engine.store.session import Database
from engine.store.tables import Attempt, Checkpoint, Run, Stage
from engine.store.transitions import ENDED, AttemptStatus


@dataclass(frozen=True)
class Leftover:
    """A file or a folder that may go."""

    kind: str
    path: Path
    why: str
    bytes: int
    modified: datetime


def leftovers(db: Database, settings: Settings, before: datetime) -> list[Leftover]:
    """What may go from this home: nothing in it was changed at `before` or later."""
    with db.read() as session:
        found = [
            *_work(session, settings.work),
            *_checkpoints(session, settings.checkpoints, settings.spool),
            *_logs(session, settings.logs),
            *_spool(session, settings.spool),
            *_fetched(session, settings.home / "cache"),
        ]
    measured = [Leftover(kind, path, why, *measure(path)) for kind, path, why in found]
    return [one for one in measured if one.modified < before]


def remove_files(owned: Belongings, settings: Settings) -> None:
    """Remove what this home keeps of a run that SQL has forgotten."""
    shelves = settings.checkpoints / owned.handle
    places = [shelves / shelf_name(name, stage_id) for stage_id, name in owned.stages]
    places += [place for attempt in owned.attempts for place in places_of(settings, attempt)]
    places += [path for attempt in owned.attempts for path in _entries(settings.work, f"{attempt}.node*")]
    for stage_id, _ in owned.stages:
        places += _entries(settings.spool, f"{stage_id.hex}-*")
    places += [Path(uri) for uri in owned.checkpoints if uri.startswith("/")]
    for path in (*places, settings.logs / owned.handle):
        remove(path)
    with suppress(OSError):  # not empty: a run of the same handle was before this one
        shelves.rmdir()


Found = Iterator[tuple[str, Path, str]]


def _work(session: Session, folder: Path) -> Found:
    running = set(session.scalars(select(Attempt.id).where(Attempt.status == AttemptStatus.RUNNING)))
    for path in _entries(folder):
        attempt = _uuid(path.name.partition(".")[0])
        if attempt is not None and attempt not in running:
            yield "work", path, "its attempt has ended"


def _checkpoints(session: Session, folder: Path, spool: Path) -> Found:
    for shelves in _entries(folder):
        run = session.execute(select(Run.id, Run.status).where(Run.handle == shelves.name)).one_or_none()
        if run is None:
            yield "checkpoint", shelves, "no run is called so"
        elif run.status in ENDED[Run]:
            yield from _shelves(session, run.id, shelves, spool)


def _shelves(session: Session, run_id: UUID, folder: Path, spool: Path) -> Found:
    rows = session.execute(select(Stage.id, Stage.name).where(Stage.run_id == run_id))
    stages = {shelf_name(row.name, row.id): row.id for row in rows}
    uris = session.scalars(select(Checkpoint.uri).where(Checkpoint.run_id == run_id)).all()
    # The end of each place: another host may reach the same folder by another path.
    recorded = {Path(uri).parts[-3:] for uri in uris}
    for shelf in _entries(folder):
        if shelf.name not in stages:
            if not any(f"/{folder.name}/{shelf.name}" in uri for uri in uris):
                yield "checkpoint", shelf, "its run has no such stage"
            continue
        # What is still to be delivered may record one of them.
        spooled = not all(_delivered(path) for path in _entries(spool, f"{stages[shelf.name].hex}-*"))
        for path in _entries(shelf, "attempt-*/*"):
            if path.name.startswith("."):
                yield "draft", path, "never finished, or half removed"
            elif path.parts[-3:] not in recorded and not spooled:
                yield "checkpoint", path, "it is not recorded"


def _logs(session: Session, folder: Path) -> Found:
    for path in _entries(folder):
        if path.is_dir() and session.scalar(select(Run.id).where(Run.handle == path.name)) is None:
            yield "log", path, "no run is called so"


def _spool(session: Session, folder: Path) -> Found:
    for path in _entries(folder):
        stage_id = _uuid(path.name.rpartition("-")[0])
        if stage_id is None:
            continue
        status = session.scalar(select(Stage.status).where(Stage.id == stage_id))
        if status is None:
            yield "spool", path, "its stage was removed"
        elif status in ENDED[Stage] and _delivered(path):
            yield "spool", path, "delivered"


def _delivered(path: Path) -> bool:
    """Whether nothing in an attempt's spool is still to be delivered: see `spool` and `metric_spool`."""
    return all(file.suffix == ".delivered" for file in _entries(path))


def _fetched(session: Session, folder: Path) -> Found:
    copies = {path.name: path for path in _entries(folder, "??/*")}
    known = garbage.known(session, copies)
    for name, path in copies.items():
        if name not in known:
            yield "copy", path, "its artifact is gone"
    for path in _entries(folder, "incoming-*"):
        yield "draft", path, "never finished"


def _entries(folder: Path, pattern: str = "*") -> Iterable[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else ()


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
