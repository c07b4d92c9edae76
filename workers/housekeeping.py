"""What any worker does for all: announce what is ready, and take back the stages of those who fell silent.

It runs in a thread of every worker. Announcing may happen in several at once; the rest under one SQL lock.

No lease is taken for lost because the store was away: its holder could not renew it. So leases are spared for
one lease's time by a worker that was cut off itself, and by all after nobody had swept for that long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from engine.clock import Clock, utc_now
from engine.errors import Unreachable
from engine.log import get_logger
from engine.store import locks, outbox, stages
from engine.store.outbox import OutboxMessage
from engine.store.session import Database

log = get_logger(__name__)

PUBLISH_EVERY_S = 0.5
SWEEP_EVERY_S = 3.0
LOCK = "housekeeping"
LOCK_S = 30.0
BROKER_AGAIN_S = 5.0
SWEPT, SPARED = "housekeeping.swept", "housekeeping.spared"
"""Locks that all hold together: while the first runs, sweeps come regularly; with the second, no lease expires."""
EVERYBODY = "everybody"
REGULAR_S = 5 * SWEEP_EVERY_S
"""With longer pauses between two sweeps of anybody, nobody swept."""


class Housekeeping:
    """Publishes and sweeps from `start` to `stop`."""

    def __init__(
        self,
        db: Database,
        owner: str,
        send: Callable[[OutboxMessage], None],
        found: Callable[[], object],
        now: Clock = utc_now,
        *,
        lease_s: float = 15.0,
        deliver: Callable[[], object] = lambda: None,
        mirror: Callable[[], object] = lambda: None,
    ) -> None:
        self._db, self._owner, self._send, self._found, self._now = db, owner, send, found, now
        self._lease_s, self._deliver, self._mirror = lease_s, deliver, mirror
        self._cut_off = False
        self._spare_until: datetime | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Announce what is due once more, and end."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def publish(self) -> int:
        """Announce what the outbox holds; how many. Raises Unreachable for the database, anything for the broker."""
        return outbox.publish(self._db, self._send, now=self._now())

    def sweep(self) -> int:
        """Requeue stages whose worker fell silent, announce again what nobody took; how many came back.

        First of all deliver what dead attempts left on this host, before their stages go to others. Raises Unreachable.
        """
        try:
            self._deliver_left()
            return self._sweep()
        except Unreachable:
            self._cut_off = True
            raise

    def _deliver_left(self) -> None:
        try:
            self._deliver()
        except Unreachable:
            raise
        except Exception:
            log.exception("what dead attempts left cannot be delivered, trying again")

    def _sweep(self) -> int:
        with locks.held(self._db, LOCK, self._owner, LOCK_S, clock=self._now) as mine:
            if not mine:
                return 0
            with self._db.write() as session:
                now = self._now()
                lost = [] if self._spares(session, now) else stages.expire(session, now)
                outbox.announce_again(session, now)
        for attempt in lost:
            log.warning(
                "a worker fell silent",
                extra={"stage": str(attempt.stage_id), "attempt": attempt.number, "became": str(attempt.status)},
            )
        return len(lost)

    def _spares(self, session: Session, now: datetime) -> bool:
        """Whether holders of leases may have been unable to renew them until just now."""
        lease = timedelta(seconds=self._lease_s)
        # The store was away from everybody, or there was nobody. Not twice in a row: a slow sweeper is no outage.
        if not locks.taken(session, SWEPT, now=now) and not locks.taken(session, SPARED, now=now - lease):
            locks.acquire(session, SPARED, EVERYBODY, now=now, ttl_s=self._lease_s)
        locks.acquire(session, SWEPT, EVERYBODY, now=now, ttl_s=max(REGULAR_S, self._lease_s))
        if self._cut_off:
            self._cut_off, self._spare_until = False, now + lease
        mine = self._spare_until is not None and now < self._spare_until
        return mine or locks.taken(session, SPARED, now=now)

    def _start_mirrors(self) -> None:
        try:
            self._mirror()
        except Unreachable:
            raise
        except Exception:
            log.exception("runs are not mirrored into other tools")

    def _run(self) -> None:
        swept, publish_from = float("-inf"), 0.0
        while True:
            last = self._stopping.is_set()
            try:
                if time.monotonic() - swept >= SWEEP_EVERY_S and not last:
                    swept = time.monotonic()
                    if self.sweep():
                        self._found()
                    self._start_mirrors()
                if time.monotonic() >= publish_from:
                    publish_from = time.monotonic() + BROKER_AGAIN_S  # unless it goes well
                    self.publish()
                    publish_from = 0.0
            except Unreachable as error:
                log.warning("the database is away", extra={"error": str(error)})
            except Exception as error:  # noqa: BLE001 - brokers raise what they like; the outbox keeps its rows
                log.warning("announcing failed, trying again", extra={"error": f"{type(error).__name__}: {error}"})
            if last:
                return
            self._stopping.wait(PUBLISH_EVERY_S)
