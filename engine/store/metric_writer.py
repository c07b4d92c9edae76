"""The way of metrics into the store: a list in the training loop, a background thread, batches in SQL, a spool.

`log` costs an append. What cannot be delivered because the database is away is kept in a file on the local
disk and delivered first once it is back, by this attempt or by the stage's next one. What a stale attempt
still logs is dropped.
"""

from __future__ import annotations

import math
import threading
import time as clock
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.errors import RlxError, StaleAttempt, Unreachable
from engine.log import get_logger
from engine.store.metric_spool import MetricSpool, Point
from engine.store.session import Database
from engine.store.stages import fenced
from engine.store.tables import RunId, Series, StageId
from engine.store.upsert import insert
from engine.store.values import storable_text

log = get_logger(__name__)

FLUSH_S = 0.5
_BATCH = 2_000
"""`log` calls a transaction."""
_SLICE = 100
"""`log` calls converted before the thread lets the training loop have the interpreter."""
_ROWS = (512, 64, 8, 1)
"""Rows a statement. One statement for many rows runs without the interpreter's lock from end to end, where
`executemany` would beg for it back after every row, and wait long for it beside a busy training loop."""
_CHUNK = 1024
_LONGEST_KEY = 255

_UPSERT = " ON CONFLICT (series_id, step) DO UPDATE SET value = excluded.value, time = excluded.time"
_INTO = "INSERT INTO metrics (series_id, step, value, time) "
_SQLITE = {rows: _INTO + "VALUES " + ", ".join(["(?, ?, ?, ?)"] * rows) + _UPSERT for rows in _ROWS}
_POSTGRESQL = _INTO + "SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::float8[], %s::float8[])" + _UPSERT

Entry = tuple[int, dict[str, float], float]
Points = Mapping[str, Mapping[int, Point]]
Row = tuple[int, int, float | None, float]


class MetricWriter:
    """Writes the metrics of one attempt. `log` from one thread or many; `flush` and `close` when it matters.

    A step that is logged again replaces the earlier point, so that nothing is there twice after a resume.
    """

    def __init__(
        self,
        db: Database,
        run_id: RunId,
        stage_id: StageId,
        fence: int,
        spool_dir: Path,
        *,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._db, self._run_id, self._stage_id, self._fence = db, run_id, stage_id, fence
        self._pending: deque[Entry] = deque()
        self._append = self._pending.append
        self._spool = MetricSpool(spool_dir, stage_id)
        self._series: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._delivering = threading.Lock()
        self._stale: StaleAttempt | None = None
        self._refused_keys: set[Any] = set()
        self._wake = threading.Event()
        self._closing = False
        self._flush_s = flush_s
        self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float], time: float | None = None) -> None:
        """Record `metrics` at `step`. Never blocks and never raises; a value that is no number is left out."""
        try:
            values = {key: value if type(value) is float else float(value) for key, value in metrics.items()}
            self._append((step if type(step) is int else int(step), values, clock.time() if time is None else time))
        except Exception:  # noqa: BLE001  # whatever a foreign object's __float__ raises: this must not stop training
            self._log_what_can_be(step, metrics, clock.time() if time is None else time)

    @property
    def stale(self) -> StaleAttempt | None:
        """Set once a newer attempt has begun: nothing more is recorded."""
        return self._stale

    @property
    def spooled(self) -> bool:
        """Whether points wait on the local disk for the database to come back."""
        return self._spool.waiting

    def flush(self) -> None:
        """Return once all that was logged before is durable: in the database, or else in the spool.

        Raises StaleAttempt where a newer attempt has begun, DiskError where neither takes it.
        """
        with self._delivering:
            self._deliver()
        if self._stale is not None:
            raise self._stale

    def close(self, *, patience_s: float = 0.0) -> bool:
        """Stop the thread and deliver what is left. True where everything is in the database.

        While the database is away, tries again for `patience_s`; what then remains stays in the spool, for the
        stage's next attempt. Raises StaleAttempt where a newer one has begun.
        """
        self._closing = True
        self._wake.set()
        self._thread.join()
        deadline = clock.monotonic() + patience_s
        self.flush()
        while self._spool.waiting and (left := deadline - clock.monotonic()) > 0:
            clock.sleep(min(self._flush_s, left))
            self.flush()
        return not self._spool.waiting

    def _work(self) -> None:
        while not self._closing and self._stale is None:
            self._wake.wait(self._flush_s)
            try:
                with self._delivering:
                    self._deliver()
            except RlxError as error:
                # Nothing is lost yet: it stays in memory, and the next round tries again.
                log.warning("metrics cannot be stored", extra={"error": str(error)})
            except Exception:
                log.exception("metrics cannot be stored")

    def _deliver(self) -> None:
        """Hand over all that is pending, the spool first. Called with `_delivering` held."""
        if self.stale is not None:
            self._pending.clear()
            return
        reachable = self._deliver_spool()
        left = len(self._pending)  # what is logged meanwhile is for the next round
        while left > 0 and self.stale is None:
            entries = [self._pending.popleft() for _ in range(min(left, _BATCH))]
            left -= len(entries)
            try:
                points = self._points(entries)
                if not (reachable := reachable and self._store(points)) and self.stale is None:
                    self._spool.append(points)
            except BaseException:
                self._pending.extendleft(reversed(entries))
                raise

    def _deliver_spool(self) -> bool:
        """Whether the database answers, as far as we can tell."""
        while (batch := self._spool.first()) is not None:
            if batch.points and not self._store(batch.points):
                return False
            self._spool.strike_off(batch)
        return True

    def _points(self, entries: list[Entry]) -> Points:
        """Key -> step -> (value, time), the newest winning."""
        found: dict[str, dict[int, Point]] = {}
        names = self._names
        for place, (step, values, time) in enumerate(entries):
            for key, value in values.items():
                name = names.get(key)
                if name is None:
                    name = names[key] = storable_text(key)[:_LONGEST_KEY]
                points = found.get(name)
                if points is None:
                    points = found[name] = {}
                points[step] = (value if math.isfinite(value) else None, time)
            if place % _SLICE == _SLICE - 1:
                clock.sleep(0)
        return found

    def _store(self, points: Points) -> bool:
        """One batch in one transaction. False where the database is away or the attempt is stale."""
        try:
            with self._db.write() as session:
                fenced(session, self._stage_id, self._fence)
                self._intern(session, points)
                for rows in _chunks(points, self._series):
                    _upsert(session, rows)
        except Unreachable:
            self._series.clear()  # an id may have been handed out in a transaction that never was
            return False
        except StaleAttempt as error:
            self._stale = error
            return False
        except BaseException:
            self._series.clear()
            raise
        return True

    def _intern(self, session: Session, keys: Iterable[str]) -> None:
        """Give every key its series."""
        new = sorted(key for key in keys if key not in self._series)
        if not new:
            return
        session.execute(
            insert(session, Series).on_conflict_do_nothing(index_elements=[Series.stage_id, Series.key]),
            [{"run_id": self._run_id, "stage_id": self._stage_id, "key": key} for key in new],
        )
        rows = session.execute(
            select(Series.key, Series.id).where(Series.stage_id == self._stage_id, Series.key.in_(new))
        )
        self._series |= {row.key: row.id for row in rows}

    def _log_what_can_be(self, step: Any, metrics: Mapping[Any, Any], time: float) -> None:
        """The values that are numbers; what is none is named in the log, once a key."""
        values: dict[str, float] = {}
        for key, value in dict(metrics).items():
            try:
                values[str(key)] = float(value)
                step = int(step)
            except Exception as error:  # noqa: BLE001  # as in `log`
                values.pop(str(key), None)
                if key not in self._refused_keys:
                    self._refused_keys.add(key)
                    log.warning("a metric is not a number", extra={"key": str(key), "error": str(error)})
        if values:
            self._append((step, values, time))


def _chunks(points: Points, series: Mapping[str, int]) -> Iterator[list[Row]]:
    """Rows of the table, a few hundred at a time."""
    rows: list[Row] = []
    for key, by_step in points.items():
        series_id = series[key]
        for step, (value, time) in by_step.items():
            rows.append((series_id, step, value, time))
            if len(rows) == _CHUNK:
                yield rows
                rows = []
    if rows:
        yield rows


def _upsert(session: Session, rows: list[Row]) -> None:
    connection = session.connection()
    if connection.dialect.name == "postgresql":
        # One statement with four arrays is several times as fast as rows one by one.
        connection.exec_driver_sql(_POSTGRESQL, tuple(list(column) for column in zip(*rows, strict=True)))
        return
    begin = 0
    for size in _ROWS:
        while len(rows) - begin >= size:
            connection.exec_driver_sql(_SQLITE[size], tuple(chain.from_iterable(rows[begin : begin + size])))
            begin += size
