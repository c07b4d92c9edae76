"""Reports on their way to the store: in order, each once, from a thread of their own, so that no stage waits.

Reports are written in transactions that hold the attempt's fence. While the database is away they go to the
attempt's spool, on the local disk, so that memory stays small however long that lasts; once a newer attempt has
begun they are dropped, and the stage is told to leave. What is in the spool when the process ends is `left_behind`'s.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from sqlalchemy.orm import Session

from engine.errors import DiskError, StaleAttempt, Unreachable
from engine.log import get_logger
from engine.runtime.reports import Checkpointed, Progressed, Report, Reporter, write_all
from engine.runtime.spool import Spool
from engine.store import stages
from engine.store.session import Database

log = get_logger(__name__)

_BATCH, _SPOOLED_BATCH = 200, 1_000
"""Samples' worth of reports a transaction."""
_PAUSE_S = 0.2
"""Between two deliveries: many small reports share a transaction."""
RETRY_S = 2.0
"""Between two tries while the database is away."""
HELD = 2_000
"""Samples' worth of reports that wait in memory, before they go to the disk."""
MOST_HELD = 20_000
"""Where the disk takes none either, the stage may go on until this many wait."""


def _nothing() -> None: ...


@dataclass(frozen=True)
class Hooks:
    """What is done around checkpoints, for which all that was reported in other ways counts too."""

    before_checkpoint: Callable[[], None] = _nothing
    """Before the record of a checkpoint is written, outside the transaction. Unreachable has it tried again."""
    after_checkpoint: Callable[[], None] = _nothing
    """Once it is committed; likewise."""
    before_spooling: Callable[[], None] = _nothing
    """Before the record of a checkpoint goes to the disk. DiskError keeps it in memory."""
    while_away: Callable[[], None] = _nothing
    """After each try that found the database away."""


class Delivery:
    """The reports of one attempt. `put` never waits for the store; `settle` has all of them in the store or on disk."""

    def __init__(
        self,
        open_db: Callable[[], Database],
        reporter: Reporter,
        spool: Spool,
        hooks: Hooks | None = None,
        *,
        retry_s: float = RETRY_S,
    ) -> None:
        self._open_db, self._reporter, self._spool, self._retry_s = open_db, reporter, spool, retry_s
        self._hooks = hooks or Hooks()
        self._waiting: deque[tuple[int, Report]] = deque()
        """Numbered as they were put."""
        self._put, self._size = 0, 0
        self._ripe = 0
        """Up to this number, checkpoints may go to the disk: what was reported in other ways before is durable."""
        self._sending: list[tuple[int, Report]] = []
        self._spilled_to: int | None = None
        """Where in the spool the reports end that are being sent from memory, if they went there meanwhile."""
        self._latest: Progressed | None = None
        self._wake = threading.Condition()
        self._idle = True
        self._hurry, self._closed = threading.Event(), threading.Event()
        self._away, self._answered = False, time.monotonic()
        self._disk: DiskError | None = None
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def put(self, report: Report) -> None:
        """Deliver this after everything that was put before it.

        Raises what went wrong with an earlier one, and DiskError where neither store nor disk takes any more.
        """
        self.check()
        with self._wake:
            if self._disk is not None and self._size > MOST_HELD:
                raise self._disk
            self._append(report)
            if self._size >= HELD and self._disk is None:
                self._spill_if_possible()
            self._start()

    def replace(self, news: Progressed) -> None:
        """Deliver this sooner or later, unless it is replaced first: only the last word counts."""
        with self._wake:
            self._latest = news
            self._start()

    def check(self) -> None:
        """Raise what a delivery failed with: StaleAttempt, or a report that the store cannot hold."""
        if self._failure is not None:
            raise self._failure

    @property
    def stale(self) -> bool:
        """Whether a newer attempt has begun."""
        return isinstance(self._failure, StaleAttempt)

    def settle(self, patience_s: float, *, within_s: float = 0.0) -> bool:
        """Wait until all is delivered; what is not, because the database does not answer for `patience_s`, is on disk.

        True where all is in the store. Raises what failed; DiskError where the disk takes none for `within_s` either.
        """
        begun = time.monotonic()
        self._hurry.set()
        try:
            with self._wake:
                while not self._idle and self._failure is None:
                    now = time.monotonic()
                    if now - max(begun, self._answered) > patience_s:
                        try:
                            self._spill_all()
                            break
                        except DiskError:
                            if now - begun > within_s:
                                raise
                    self._wake.wait(min(0.1, max(0.01, patience_s)))
                delivered = self._idle
        finally:
            self._hurry.clear()
        self.check()
        return delivered

    def close(self, timeout_s: float = 1.0) -> bool:
        """Deliver no more. What is in the spool stays there; what is only in memory is given up.

        False where the thread is still held up by a database that does not answer, and uses the spool.
        """
        self._closed.set()
        with self._wake:
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()

    def _append(self, report: Report) -> None:
        self._put += 1
        self._waiting.append((self._put, report))
        self._size += report.size

    def _start(self) -> None:
        self._idle = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)
            self._thread.start()
        self._wake.notify_all()

    def _run(self) -> None:
        while self._await_work():
            try:
                try:
                    self._deliver_next()
                    self._away, self._answered = False, time.monotonic()
                except Unreachable as error:
                    self._stand_by(error)
            except BaseException as error:  # noqa: BLE001 - raised in the stage's own thread, at its next report
                with self._wake:
                    self._failure = error
                    self._waiting.clear()
                    self._wake.notify_all()
                return

    def _await_work(self) -> bool:
        """Until there is something to deliver; False once closed."""
        with self._wake:
            while not (self._waiting or self._latest or self._spool.waiting or self._closed.is_set()):
                self._idle = True
                self._wake.notify_all()
                self._wake.wait()
        self._hurry.wait(_PAUSE_S)
        return not self._closed.is_set()

    def _deliver_next(self) -> None:
        """The oldest reports, in one transaction: from the spool first, for what is in memory is newer."""
        with self._wake:
            spooled = self._spool.waiting
            if not spooled:
                self._sending = self._take()
        if spooled:
            batch = self._spool.first(_SPOOLED_BATCH)  # only we read there, and `put` need not wait for it
            self._send(list(batch.reports))
            with self._wake:
                self._spool.strike_off(batch.end)
            return
        self._send([report for _, report in self._sending])
        with self._wake:
            if self._spilled_to is not None:
                self._spool.strike_off(self._spilled_to)
            self._sending, self._spilled_to = [], None

    def _take(self) -> list[tuple[int, Report]]:
        """The next reports for one transaction; a checkpoint ends it."""
        batch: list[tuple[int, Report]] = []
        size = 0
        while self._waiting and size < _BATCH:
            batch.append(self._waiting.popleft())
            size += batch[-1][1].size
            if isinstance(batch[-1][1], Checkpointed):
                break
        self._size -= size
        return batch

    def _send(self, reports: list[Report]) -> None:
        with self._wake:
            latest, self._latest = self._latest, None
        checkpoint = bool(reports) and isinstance(reports[-1], Checkpointed)

        def write(session: Session) -> None:
            stages.fenced(session, self._reporter.stage_id, self._reporter.number)
            write_all(session, self._reporter, [*reports, *([] if latest is None else [latest])])

        try:
            if checkpoint:
                self._hooks.before_checkpoint()
            self._open_db().transact(write)
            if checkpoint:
                self._hooks.after_checkpoint()
        except Unreachable:
            with self._wake:
                self._latest = self._latest or latest
            raise

    def _stand_by(self, error: Unreachable) -> None:
        """The database is away: what is in memory goes to the disk, and we try again in a while."""
        with self._wake:
            if not self._away:
                log.warning("the database is away, reports are kept on the disk", extra={"error": str(error)})
            self._away = True
            if self._spilled_to is None:
                self._waiting.extendleft(reversed(self._sending))
                self._size += sum(report.size for _, report in self._sending)
            self._sending, self._spilled_to = [], None
            put = self._put
        try:
            self._hooks.before_spooling()
        except DiskError as error:
            self._bear(error)
        else:
            with self._wake:
                self._ripe = put
                self._spill_if_possible()
        try:
            self._hooks.while_away()
        except Exception:
            log.exception("tidying while the database is away failed")
        self._closed.wait(self._retry_s)

    def _spill_if_possible(self) -> None:
        try:
            self._spill()
        except DiskError as error:
            self._bear(error)

    def _bear(self, error: DiskError) -> None:
        if self._disk is None:
            log.error("reports wait in memory", extra={"error": str(error)})
        self._disk = error

    def _spill_all(self) -> None:
        """Everything to the disk, the news too, once the stage reports no more. Raises DiskError."""
        self._hooks.before_spooling()
        self._ripe = self._put
        if self._latest is not None:
            self._append(self._latest)
            self._latest = None
        self._spill()

    def _spill(self) -> None:
        """What is in memory to the disk, in its order, until a checkpoint that is not ripe.

        Raises DiskError; what was not written is in memory still.
        """
        if self._sending and self._spilled_to is None:
            if not all(self._may_spill(one) for one in self._sending):
                return
            self._spilled_to = self._spool.append([report for _, report in self._sending])
        ripe = list(takewhile(self._may_spill, self._waiting))
        if ripe:
            self._spool.append([report for _, report in ripe])
            for _, report in ripe:
                self._waiting.popleft()
                self._size -= report.size
        self._disk = None

    def _may_spill(self, numbered: tuple[int, Report]) -> bool:
        number, report = numbered
        return number <= self._ripe or not isinstance(report, Checkpointed)
