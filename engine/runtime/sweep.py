"""What `rlx gc` may remove, as a list to show first, and the removal of each, safe while workers run.

What may go is found in one look at the store; each thing is asked about once more when it goes. SQL forgets
first, then the files go: killed in between, files are left that the next look finds, and never a row without
its files. Two that sweep at once do no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.runtime import leftovers
from engine.settings import Settings
from engine.store import artifact_sweep, garbage, retention
from engine.store.garbage import Unneeded
from engine.store.processes import host_name
from engine.store.retention import Limits, Shelved
from engine.store.session import Database
from engine.store.tables import Run


@dataclass(frozen=True)
class Item:
    """One thing that may go. `remove` says whether it went: by then it may be wanted again."""

    kind: str
    name: str
    why: str
    bytes: int
    since: datetime
    """When it was made or last changed."""
    remove: Callable[[], bool]


@dataclass(frozen=True)
class Found:
    """What may go, and what was passed over: one sentence each."""

    items: tuple[Item, ...]
    notes: tuple[str, ...] = ()


def look(db: Database, settings: Settings, limits: Limits, *, now: datetime, grace_s: float) -> Found:
    """What may go, and why. Changes nothing."""
    with db.read() as session:
        before = garbage.cutoff(session, now=now, grace_s=grace_s)
        items = [_artifact(db, one, before) for one in garbage.unneeded(session, before)]
        checkpoints, notes = _checkpoints(db, session, limits, now)
        items += checkpoints
        empty = session.scalar(select(Run.id).limit(1)) is None
    if empty:
        # It may be another database's home: where nothing is known, everything would look like a leftover.
        return Found(tuple(items), (*notes, "this database has no run: files are left alone, whosever they are"))
    items += _orphans(db, settings.artifact_url, before)
    items += [_leftover(one) for one in leftovers.leftovers(db, settings, before)]
    return Found(tuple(items), notes)


def put_aside(path: Path) -> None:
    """Remove a folder that others may list: out of sight by a rename first, so that no half of it is ever found."""
    aside = path.with_name(f".{path.name}.gone")
    artifact_sweep.remove(aside)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    artifact_sweep.remove(aside)


def _artifact(db: Database, one: Unneeded, before: datetime) -> Item:
    def remove() -> bool:
        forgotten = db.transact(lambda session: garbage.forget(session, [one.id], before))
        return bool(forgotten) and artifact_sweep.discard(one.uri, before)

    return Item("artifact", one.sha256[:12], f"{one.kind}, no run has it", one.bytes, one.created_at, remove)


def _orphans(db: Database, url: str, before: datetime) -> Iterator[Item]:
    """Files in the artifact store that no row knows: a removal was cut off, or an attempt died."""
    stored = [one for one in artifact_sweep.contents(url) if one.modified < before]
    with db.read() as session:  # after the files were listed: a row that was made since is seen
        known = garbage.known(session, {one.name[:64] for one in stored if one.whole})
    for one in stored:
        if one.name not in known:
            why = "no row knows it" if one.whole else "never finished, or half removed"
            remove = partial(artifact_sweep.discard, one.uri, before)
            yield Item("files", one.name[:12], why, one.bytes, one.modified, remove)


def _checkpoints(db: Database, session: Session, limits: Limits, now: datetime) -> tuple[list[Item], tuple[str, ...]]:
    if limits == Limits():
        return [], ()
    shelved = retention.shelved(session)
    items, elsewhere = [], set()
    for one, why in retention.surplus(shelved, limits, now=now):
        if one.host not in (None, host_name()) and not Path(one.uri).exists():
            elsewhere.add(one.host)
        else:
            name = f"{one.handle} {one.stage} step-{one.step}"
            items.append(Item("checkpoint", name, why, one.bytes, one.created_at, partial(_forget, db, one, now)))
    notes = [f"checkpoints on {host} are left alone: run `rlx gc` there" for host in sorted(map(str, elsewhere))]
    if limits.max_bytes is not None:
        needed = sum(one.bytes for one in shelved if one.needed is not None)
        if needed > limits.max_bytes:
            notes.append(f"the checkpoints that are needed take {needed} bytes, over the {limits.max_bytes} allowed")
    return items, tuple(notes)


def _forget(db: Database, one: Shelved, now: datetime) -> bool:
    if not db.transact(lambda session: retention.forget(session, one.run_id, [one.id], looked_at=now)):
        return False
    put_aside(Path(one.uri))
    return True


def _leftover(one: leftovers.Leftover) -> Item:
    def remove() -> bool:
        if one.kind == "checkpoint":
            put_aside(one.path)
        else:
            artifact_sweep.remove(one.path)
        return True

    name = f"{one.path.parent.name}/{one.path.name}"
    return Item(one.kind, name, one.why, one.bytes, one.modified, remove)
