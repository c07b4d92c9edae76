"""Mirroring a run while it is alive, and for once: failures are told and tried again, and never the run's business.

One process at a time mirrors a run; an SQL lock with a short life says who.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from engine.clock import utc_now
from engine.errors import MissingPackage, Refused, RlxError, TrackingError, Unreachable
from engine.log import get_logger
from engine.store import events, locks
from engine.store.session import Database
from engine.store.tables import RunId
from engine.tracking import reading
from engine.tracking.bridges import Way, mirror
from engine.tracking.mirror import Mirror

log = get_logger(__name__)

EVERY_S = 2.0
LOCK_S = 60.0
_RENEW_S = 10.0
_WAITS_S = (2.0, 10.0, 30.0, 60.0)
"""Before a bridge that failed is tried again, the last one from then on."""
_LAST_TRIES = 3
"""Of a bridge that fails once the run is over."""


class Turn:
    """The right to mirror a run, renewed between batches."""

    def __init__(self, db: Database, run_id: RunId, owner: str) -> None:
        self._db, self._name, self._owner = db, locks.tracking_lock(run_id), owner
        self._renewed = float("-inf")

    def take(self) -> bool:
        """Whether it is ours now."""
        with self._db.write() as session:
            mine = locks.acquire(session, self._name, self._owner, now=utc_now(), ttl_s=LOCK_S)
        self._renewed = time.monotonic()
        return mine

    def keep(self) -> None:
        """Renew it where that is due. Raises Refused where another has it."""
        if time.monotonic() - self._renewed >= _RENEW_S and not self.take():
            raise Refused("another process mirrors this run now")

    def leave(self) -> None:
        """Give it back."""
        with self._db.write() as session:
            locks.release(session, self._name, self._owner)


@dataclass
class _Follower:
    """One bridge of a run that is followed."""

    way: Way
    mirror: Mirror | None = None
    failures: int = 0
    told: str = ""
    again: float = float("-inf")


def follow(
    db: Database,
    home: Path,
    run_id: RunId,
    handle: str,
    asked: Sequence[Way],
    turn: Turn,
    *,
    wait: Callable[[float], bool],
) -> Mapping[str, str | None]:
    """Mirror the run until it is over, or `wait(seconds)` says to leave. What failed for each bridge in the end.

    The turn has been taken; it is given back.
    """
    followers = [_Follower(way) for way in asked]
    leave = False
    try:
        while True:
            try:
                with db.read() as session:  # before the pass: what is committed until the end is in the last one
                    last = reading.over(session, run_id) or leave
                turn.keep()
                for one in followers:
                    _pass(db, home, run_id, handle, one, turn, closing=last)
                if last and not any(0 < one.failures < _LAST_TRIES for one in followers):
                    return {one.way.name: one.told or None for one in followers}
            except Unreachable as error:
                log.warning("the database is away", extra={"error": str(error)})
                if leave:
                    return {one.way.name: one.told or str(error) for one in followers}
            leave = wait(EVERY_S) or leave
    finally:
        _quietly(turn.leave)


def _pass(db: Database, home: Path, run_id: RunId, handle: str, one: _Follower, turn: Turn, *, closing: bool) -> None:
    if time.monotonic() < one.again and not closing:
        return
    if closing and one.failures >= _LAST_TRIES:
        return
    first = one.mirror is None
    try:
        if one.mirror is None:
            one.mirror = mirror(db, home, run_id, handle, one.way, turn.keep)
        one.mirror.catch_up()
        if closing:
            one.mirror.close()
            one.mirror = None
    except (Unreachable, Refused):
        raise
    except Exception as error:  # noqa: BLE001  # whatever a foreign library raises: it is told, and tried again
        _failed(db, run_id, handle, one, error)
        return
    if one.failures or first:
        _recovered(db, run_id, one.way.name)
    one.failures, one.told = 0, ""


def _failed(db: Database, run_id: RunId, handle: str, one: _Follower, error: Exception) -> None:
    """Drop the mirror: the next one goes on from what was remembered last."""
    if one.mirror is not None:
        one.mirror.drop()
    one.mirror = None
    one.again = time.monotonic() + _WAITS_S[min(one.failures, len(_WAITS_S) - 1)]
    one.failures = _LAST_TRIES if isinstance(error, MissingPackage) else one.failures + 1
    told = str(error) if isinstance(error, RlxError) else f"{type(error).__name__}: {error}"
    log.warning("a mirror failed", extra={"bridge": one.way.name, "run": handle, "error": told})
    if told != one.told:
        one.told = told
        name = one.way.name
        message = f"{name} cannot be written: {told[:500]}. `rlx track {handle} --to {name}` catches up"
        with db.write() as session:
            _tell(session, run_id, events.MIRROR_FAILED, name, message)


def _recovered(db: Database, run_id: RunId, name: str) -> None:
    """Say so, if the last that was said of the bridge is that it failed."""
    with db.read() as session:
        failing = name in events.failing_mirrors(session, run_id)
    if failing:
        with db.write() as session:
            _tell(session, run_id, events.MIRRORED, name, f"{name} is up to date again")


def _tell(session: Session, run_id: RunId, kind: str, name: str, message: str) -> None:
    events.add(session, kind, message, now=utc_now(), run_id=run_id, data={"bridge": name})


def _quietly(act: Callable[[], None]) -> None:
    try:
        act()
    except Unreachable as error:
        log.warning("the database is away", extra={"error": str(error)})


def once(db: Database, home: Path, run_id: RunId, handle: str, way: Way, turn: Turn) -> tuple[int, str | None]:
    """One pass; how many points it wrote, and where they can be looked at (None where nothing was new).

    Raises MissingPackage, and TrackingError for whatever else the other tool's library says.
    """
    made = mirror(db, home, run_id, handle, way, turn.keep)
    try:
        done = made.catch_up(), made.close()
    except RlxError:
        made.drop()
        raise
    except Exception as error:
        made.drop()
        raise TrackingError(
            f"{way.name} cannot be written: {type(error).__name__}: {error}. The run is untouched; the same command "
            "goes on from where this one came to"
        ) from error
    _recovered(db, run_id, way.name)
    return done
