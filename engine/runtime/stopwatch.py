"""Where a stage's time goes, and that it lives: readings in a page of memory that its supervisor can look at any time.

`with spent("generation"):` anywhere below the running stage counts for it; spells nest, and the inner one's time is
not the outer one's. Costs a microsecond, no system call and no lock, so it may stand around every decoding step. The
page is in a file: it outlives the process, whatever ends that. What the readings mean is told by `store.spent`.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from engine.store.spent import ACTIVITIES, Times

P = ParamSpec("P")
R = TypeVar("R")
Clock = Callable[[], float]
"""Seconds; `time.monotonic` is one clock for all processes of a machine."""

# The page, in numbers of 8 bytes: writes begun and ended (odd: one is under way), signs of life, the present activity,
# since when, seconds of each activity, and the same at the last recorded checkpoint.
_VERSION, _BEATS, _AT, _SINCE, _TOTAL = range(5)
_KEPT = _TOTAL + len(ACTIVITIES)
_SIZE = _KEPT + len(ACTIVITIES)
BYTES = 8 * _SIZE
"""How long a page is."""
_NUMBER = {name: index for index, name in enumerate(ACTIVITIES)}
_START_UP, _OTHER = _NUMBER["start_up"], _NUMBER["other"]
_WORK = frozenset({_NUMBER["generation"], _NUMBER["training"]})
"""With these a stage's start-up is over, as with its first report."""
_SIGNS = _WORK | {_NUMBER["functions"]}
"""Beginning one of these is a sign of life; waiting for something is none."""


@dataclass(frozen=True)
class Readings:
    """One look at a page."""

    beats: int
    """Grows with every sign of life."""
    total: Times
    kept: Times

    def as_data(self) -> dict[str, Times]:
        """What is stored with an attempt."""
        return {"total": self.total, "kept": self.kept}


def blank(clock: Clock = time.monotonic) -> bytes:
    """A page, with which a file has to begin; the start-up begins now."""
    page = array("d", bytes(BYTES))
    page[_AT], page[_SINCE] = _START_UP, clock()
    return page.tobytes()


def look(path: Path, clock: Clock = time.monotonic) -> Readings | None:
    """The readings now, of a process that lives or not; None where no file begins with a page."""
    for _ in range(100):
        try:
            with path.open("rb", buffering=0) as file:
                data = file.read(BYTES)
        except FileNotFoundError:
            return None
        if len(data) != BYTES:
            return None
        page = struct.unpack(f"{_SIZE}d", data)
        if page[_VERSION] % 2 == 0:
            break  # an odd one that stays odd: it died in the middle of a write, which costs one spell at most
    return _readings(page, clock())


def _readings(page: array[float] | memoryview[float] | tuple[float, ...], now: float) -> Readings:
    total = dict(zip(ACTIVITIES, page[_TOTAL:_KEPT], strict=True))
    total[ACTIVITIES[int(page[_AT])]] += max(0.0, now - page[_SINCE])
    kept = dict(zip(ACTIVITIES, page[_KEPT:_SIZE], strict=True))
    return Readings(int(page[_BEATS]), total, kept)


class Stopwatch:
    """The stopwatch of one stage. Spells are for the thread that made it; signs of life may come from any."""

    def __init__(self, path: Path | None = None, clock: Clock = time.monotonic) -> None:
        """On the page with which the file at `path` begins; without one, in this process's own memory."""
        self._clock = clock
        self._page: array[float] | memoryview[float]
        self._file: mmap.mmap | None = None
        if path is None:
            self._page = array("d", bytes(BYTES))
            self._page[_AT], self._page[_SINCE] = _START_UP, clock()
        else:
            with path.open("r+b") as file:
                self._file = mmap.mmap(file.fileno(), BYTES)
                self._page = memoryview(self._file).cast("d")
        self._base = int(self._page[_AT])
        self._stack: list[int] = []
        self._thread = threading.get_ident()
        self._spells = {name: _Spell(self, number) for name, number in _NUMBER.items()}

    def start(self) -> None:
        """From now on `spent` counts here."""
        global _current
        _current = self

    def stop(self) -> None:
        """`spent` counts here no more."""
        global _current
        if _current is self:
            _current = None

    def close(self) -> None:
        """Let go of the file, once nobody counts any more: what is counted all the same goes nowhere."""
        self.stop()
        if self._file is not None and isinstance(self._page, memoryview):
            page, self._page = self._page, array("d", self._page.tobytes())
            page.release()
            self._file.close()

    def spent(self, activity: str) -> AbstractContextManager[None]:
        """A spell of one of `ACTIVITIES`. Raises KeyError for another word."""
        spell = self._spells[activity]
        return spell if threading.get_ident() == self._thread else _NOTHING

    def live(self) -> None:
        """A sign of life of what is still starting up."""
        self._page[_BEATS] += 1.0

    def beat(self) -> None:
        """A sign of life. The first one ends the start-up."""
        self.live()
        if self._base == _START_UP and threading.get_ident() == self._thread:
            self._begin_work()

    def read(self) -> Readings:
        """The readings now."""
        return _readings(self._page, self._clock())

    def keep(self, readings: Readings) -> None:
        """What had been read when a checkpoint was taken is safe: that checkpoint is recorded. From any thread."""
        for number, activity in enumerate(ACTIVITIES):
            self._page[_KEPT + number] = readings.total[activity]

    def _begin_work(self) -> None:
        self._base = _OTHER
        if not self._stack:
            self._turn_to(_OTHER)
        else:
            self._stack[0] = _OTHER

    def _enter(self, activity: int) -> None:
        page = self._page
        self._stack.append(int(page[_AT]))
        if activity in _SIGNS:
            page[_BEATS] += 1.0
            if self._base == _START_UP and activity in _WORK:
                self._begin_work()
        self._turn_to(activity)

    def _leave(self) -> None:
        self._turn_to(self._stack.pop())

    def _turn_to(self, activity: int) -> None:
        page, now = self._page, self._clock()
        page[_VERSION] += 1.0
        page[_TOTAL + int(page[_AT])] += now - page[_SINCE]
        page[_AT], page[_SINCE] = activity, now
        page[_VERSION] += 1.0


class _Spell:
    """Holds nothing of its own, so one for each activity is enough, however they nest."""

    __slots__ = ("_activity", "_watch")

    def __init__(self, watch: Stopwatch, activity: int) -> None:
        self._watch, self._activity = watch, activity

    def __enter__(self) -> None:
        self._watch._enter(self._activity)

    def __exit__(self, *_: object) -> None:
        self._watch._leave()


_NOTHING: AbstractContextManager[None] = nullcontext()
_current: Stopwatch | None = None


def spent(activity: str) -> AbstractContextManager[None]:
    """A spell of the running stage, if there is one and this is its thread."""
    return _NOTHING if _current is None else _current.spent(activity)


def spends(activity: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The same for every call of a function."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with spent(activity):
                return function(*args, **kwargs)

        return timed

    return decorate


def _forget() -> None:
    """In a forked process: the page is its parent's."""
    global _current
    _current = None


os.register_at_fork(after_in_child=_forget)
