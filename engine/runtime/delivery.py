"""Reports on their way to the store: in order, each once, from a thread of their own, so that no stage waits.

A report is a write inside a transaction that holds the attempt's fence. While the database is away reports
are kept; once a newer attempt has begun they are dropped, and the stage is told to leave.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from engine.errors import StaleAttempt, Unreachable
from engine.log import get_logger
from engine.store import stages
from engine.store.session import Database
from engine.store.tables import StageId

log = get_logger(__name__)

Write = Callable[[Session], object]

_BATCH = 200
_PAUSE_S = 0.2
"""Between two deliveries: many small reports share a transaction."""
RETRY_S = 2.0
"""Between two tries while the database is away."""


@dataclass(frozen=True)
class Report:
    """One write; `before` runs first, outside the transaction, and `after` once it is committed."""

    write: Write
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None


class Delivery:
    """The reports of attempt `number` at a stage. `put` never blocks; `close` waits until all is delivered."""

    def __init__(
        self, open_db: Callable[[], Database], stage_id: StageId, number: int, *, retry_s: float = RETRY_S
    ) -> None:
        self._open_db, self._stage_id, self._number, self._retry_s = open_db, stage_id, number, retry_s
        self._waiting: deque[Report] = deque()
        self._latest: Write | None = None
        self._wake = threading.Condition()
        self._idle = True
        self._hurry, self._closed = threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def put(self, report: Report) -> None:
        """Deliver this after everything that was put before it. Raises what went wrong with an earlier one."""
        self.check()
        with self._wake:
            self._waiting.append(report)
            self._start()

    def replace(self, write: Write) -> None:
        """Deliver this sooner or later, unless it is replaced first: for news of which only the last counts."""
        with self._wake:
            self._latest = write
            self._start()

    def check(self) -> None:
        """Raise what a delivery failed with: StaleAttempt, or a report that the store cannot hold."""
        if self._failure is not None:
            raise self._failure

    @property
    def stale(self) -> bool:
        """Whether a newer attempt has begun."""
        return isinstance(self._failure, StaleAttempt)

    def drain(self, timeout_s: float) -> None:
        """Wait until everything is delivered. Raises what failed, Unreachable when the time is up."""
        deadline = time.monotonic() + timeout_s
        self._hurry.set()
        try:
            self._await_idle(deadline, timeout_s)
        finally:
            self._hurry.clear()
        self.check()

    def close(self) -> None:
        """Give up what is not delivered yet."""
        self._closed.set()
        with self._wake:
            self._wake.notify_all()

    def _await_idle(self, deadline: float, timeout_s: float) -> None:
        with self._wake:
            while not self._idle and self._failure is None:
                if not self._wake.wait(deadline - time.monotonic()):
                    raise Unreachable(
                        f"the database was away for {timeout_s:.0f} s: not all reports could be delivered"
                    )

    def _start(self) -> None:
        self._idle = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    def _run(self) -> None:
        while not self._closed.is_set():
            with self._wake:
                while not self._waiting and self._latest is None and not self._closed.is_set():
                    self._idle = True
                    self._wake.notify_all()
                    self._wake.wait()
            self._hurry.wait(_PAUSE_S)
            with self._wake:
                batch = self._take()
            try:
                self._deliver(batch)
            except Unreachable as error:
                log.warning("the database is away, reports wait", extra={"error": str(error), "waiting": len(batch)})
                with self._wake:
                    self._waiting.extendleft(reversed(batch))
                self._closed.wait(self._retry_s)
            except BaseException as error:  # noqa: BLE001 - raised in the stage's own thread, at its next report
                with self._wake:
                    self._failure = error
                    self._waiting.clear()
                    self._wake.notify_all()
                return

    def _take(self) -> list[Report]:
        """The next reports for one transaction: one with work before or after it ends a batch, or is one alone."""
        batch: list[Report] = []
        while self._waiting and len(batch) < _BATCH:
            if self._waiting[0].before is not None and batch:
                break
            batch.append(self._waiting.popleft())
            if batch[-1].before is not None or batch[-1].after is not None:
                break
        return batch

    def _deliver(self, batch: list[Report]) -> None:
        latest, self._latest = self._latest, None
        for report in batch:
            if report.before is not None:
                report.before()
        try:
            with self._open_db().write() as session:
                stages.fenced(session, self._stage_id, self._number)
                for report in batch:
                    report.write(session)
                if latest is not None:
                    latest(session)
        except Unreachable:
            self._latest = self._latest or latest
            raise
        for report in batch:
            if report.after is not None:
                report.after()
