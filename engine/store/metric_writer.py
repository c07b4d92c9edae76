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
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from engine.errors import RlxError, StaleAttempt, Unreachable
from engine.log import get_logger
from engine.store.metric_buckets import Standing, keep_up, standings
from engine.store.metric_spool import MetricSpool, Point
from engine.store.metric_upsert import Steps, upsert
from engine.store.pace import be_patient, give_way, patient, resting_within
from engine.store.session import Database
from engine.store.stages import Fence, fenced
from engine.store.tables import RunId, Series, StageId
from engine.store.upsert import insert
from engine.store.values import storable_text

log = get_logger(__name__)

FLUSH_S = 0.5
_BATCH, _SMALL_BATCH = 10_000, 2_000
"""Values a transaction, or those of one `log` call where it has more; the fewer where the thread rests meanwhile, for
on SQLite nobody else writes until it is over."""
_SLICE = 100
"""Values that the thread handles before it lets the training loop have the interpreter."""
_BACKLOG = 20_000
"""Calls of `log` that wait, with which the thread no longer takes its time."""
_LONGEST_KEY = 255
_STEPS = range(-(2**62), 2**62)
"""Steps that the databases and their arithmetic can hold."""

Entry = tuple[int, dict[str, float], float]
Points = Mapping[str, Steps]


class MetricWriter:
    """Writes the metrics of one attempt. `log` from one thread or many; `flush` and `close` when it matters.

    A step that is logged again replaces the earlier point, so that nothing is there twice after a resume.
    `hold` is the fence behind which each transaction writes.
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
        hold: Fence = fenced,
    ) -> None:
        self._db, self._run_id, self._stage_id, self._fence = db, run_id, stage_id, fence
        self._pending: deque[Entry] = deque()
        self._append = self._pending.append
        self._spool = MetricSpool(spool_dir, stage_id)
        self._series: dict[str, Standing] = {}
        self._names: dict[str, str] = {}
        self._delivering = threading.Lock()
        self._stale: StaleAttempt | None = None
        self._refused_keys: set[str] = set()
        self._wake = threading.Event()
        self._closing = False
        self._awaiting: deque[None] = deque()
        """An entry for everyone who waits until a delivery is through: unlike a count, safe from any thread."""
        self._flush_s = flush_s
        self._hold = hold
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
    def held(self) -> int:
        """How many calls of `log` wait in memory: many only while neither database nor disk takes them."""
        return len(self._pending)

    @property
    def spooled(self) -> bool:
        """Whether points wait on the local disk for the database to come back."""
        return self._spool.waiting

    def flush(self) -> None:
        """Return once all that was logged before is durable: in the database, or else in the spool.

        Raises StaleAttempt where a newer attempt has begun, DiskError where neither takes it.
        """
        self._awaiting.append(None)
        try:
            with self._delivering:
                self._deliver()
        finally:
            self._awaiting.pop()
        if self._stale is not None:
            raise self._stale

    def close(self, *, patience_s: float = 0.0) -> bool:
        """Stop the thread and deliver what is left. True where everything is in the database.

        While the database is away, tries again for `patience_s`; what then remains stays in the spool, for the
        stage's next attempt. Raises StaleAttempt where a newer one has begun.
        """
        self._closing = True
        self._awaiting.append(None)
        self._wake.set()
        self._thread.join()
        deadline = clock.monotonic() + patience_s
        self.flush()
        while self._spool.waiting and (left := deadline - clock.monotonic()) > 0:
            clock.sleep(min(self._flush_s, left))
            self.flush()
        return not self._spool.waiting

    def _work(self) -> None:
        be_patient(lambda: bool(self._awaiting) or len(self._pending) > _BACKLOG)
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
            entries: list[Entry] = []
            try:
                points = self._take(left, entries)
                left -= len(entries)
                if not (reachable := reachable and self._store(points)) and self.stale is None:
                    for part in _spooled(points):
                        self._spool.append(part)
            except BaseException:
                self._pending.extendleft(reversed(entries))
                raise

    def _deliver_spool(self) -> bool:
        """Whether the database answers, as far as we can tell."""
        while (batch := self._spool.first()) is not None:
            if batch.points and not self._store(_unspooled(batch.points)):
                return False
            self._spool.strike_off(batch)
        return True

    def _take(self, most: int, entries: list[Entry]) -> Points:
        """Move up to `most` pending entries to `entries`; they as key -> step -> (value, time), the newest winning."""
        found: dict[str, Steps] = {}
        names = self._names
        taken = held = 0
        batch = _SMALL_BATCH if patient() else _BATCH
        while len(entries) < most and taken < batch:
            entry = self._pending.popleft()
            entries.append(entry)
            step, values, time = entry
            if step not in _STEPS:
                self._refuse("step", ValueError(f"{step} is out of range"))
                continue
            for key, value in values.items():
                name = names.get(key)
                if name is None:
                    name = names[key] = storable_text(key)[:_LONGEST_KEY]
                points = found.get(name)
                if points is None:
                    points = found[name] = Steps({}, {})
                points.values[step] = value if math.isfinite(value) else None
                points.times[step] = time
            taken += len(values)
            held += len(values)
            if held >= _SLICE:
                held = 0
                give_way()
        return found

    def _store(self, points: Points) -> bool:
        """One batch in one transaction. False where the database is away or the attempt is stale."""
        known = points.keys() <= self._series.keys()
        try:
            with self._db.write() as session:
                give_way()
                with nullcontext() if known else resting_within():
                    self._hold(session, self._stage_id, self._fence)
                    give_way()
                    self._intern(session, points)
                    give_way()
                upsert(session, ((self._series[key].id, steps) for key, steps in points.items()))
                give_way()
                keep_up(session, ((self._series[key], steps.values) for key, steps in points.items()))
        except Unreachable:
            self._series.clear()  # what we know of them may be from a transaction that never was
            return False
        except StaleAttempt as error:
            self._stale = error
            return False
        except BaseException:
            self._series.clear()
            raise
        return True

    def _intern(self, session: Session, keys: Iterable[str]) -> None:
        """Know the series of every key and how far it is summarised."""
        new = sorted(key for key in keys if key not in self._series)
        if not new:
            return
        session.execute(
            insert(session, Series).on_conflict_do_nothing(index_elements=[Series.stage_id, Series.key]),
            [{"run_id": self._run_id, "stage_id": self._stage_id, "key": key} for key in new],
        )
        self._series |= standings(session, self._stage_id, new)

    def _log_what_can_be(self, step: Any, metrics: Mapping[Any, Any], time: float) -> None:
        """The values that are numbers; what is none is named in the log, once a key."""
        values: dict[str, float] = {}
        for key, value in dict(metrics).items():
            try:
                values[str(key)] = float(value)
                step = int(step)
            except Exception as error:  # noqa: BLE001  # as in `log`
                values.pop(str(key), None)
                self._refuse(str(key), error)
        if values:
            self._append((step, values, time))

    def _refuse(self, key: str, error: Exception) -> None:
        """Say once a key that it is left out."""
        if key not in self._refused_keys:
            self._refused_keys.add(key)
            log.warning("a metric is not a number", extra={"key": key, "error": str(error)})


def _spooled(points: Points) -> Iterator[dict[str, dict[int, Point]]]:
    """As the spool takes them, a slice at a time: turning them to JSON holds the interpreter's lock."""
    for key, (values, times) in points.items():
        rows = iter(values)
        while steps := list(islice(rows, _SLICE)):
            yield {key: {step: (values[step], times[step]) for step in steps}}


def _unspooled(points: Mapping[str, Mapping[int, Point]]) -> Points:
    return {
        key: Steps({step: value for step, (value, _) in rows.items()}, {step: time for step, (_, time) in rows.items()})
        for key, rows in points.items()
    }
