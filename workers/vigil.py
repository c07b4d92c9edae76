"""A supervisor's eye on one stage: does it still show signs of life, and where has its time gone.

Reads the page of the stage's stopwatch and nothing else: no SQL, no system call that could block for long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from engine.errors import Cause
from engine.log import get_logger
from engine.runtime import autopsy, stopwatch
from engine.runtime.task import Task
from engine.store.stages import Outcome
from workers import stacks

log = get_logger(__name__)

_LONGEST_LOOK_S = 5.0
"""Between two looks nobody stalls for longer: we may have been stopped ourselves, together with the stage."""


class Vigil:
    """One attempt, looked at again and again."""

    def __init__(self, task: Task, clock: Callable[[], float] = time.monotonic) -> None:
        self._task, self._clock = task, clock
        self._readings: stopwatch.Readings | None = None
        self._beats, self._looked, self._stalled_s = -1, clock(), 0.0
        self._stacks: list[dict[str, Any]] = []

    def stalls(self) -> bool:
        """Look: whether there was no sign of life for longer than there may be."""
        now = self._clock()
        since, self._looked = min(now - self._looked, _LONGEST_LOOK_S), now
        self._readings = stopwatch.look(self._task.path, self._clock) or self._readings
        beats = 0 if self._readings is None else self._readings.beats
        self._stalled_s = self._stalled_s + since if beats == self._beats else 0.0
        self._beats = beats
        limit = self._task.claimed.resources.stall_timeout_s
        return limit is not None and self._stalled_s > limit

    def spent(self) -> dict[str, Any]:
        """Where the time went until the last look, as it is stored."""
        return {} if self._readings is None else self._readings.as_data()

    def last_look(self) -> dict[str, Any]:
        """The same once the process has ended: its page says how it left."""
        self._readings = stopwatch.look(self._task.path, self._clock) or self._readings
        return self.spent()

    def take_stacks(self, pid: int) -> None:
        """Have every process of the stage say where it is, into the log and for the outcome."""
        try:
            self._stacks = stacks.dump(pid, self._task.log)
        except Exception:  # an autopsy that fails is no reason to let a dead stage stand
            log.exception("the stacks could not be taken", extra={"stage": self._task.claimed.name})

    def out_of_time(self) -> Outcome:
        """The outcome of a stage that was not through in its time."""
        limit = timedelta(seconds=self._task.claimed.resources.timeout_s or 0)
        return self._hang(f"the stage was not through within its time of {limit}")

    def stalled(self) -> Outcome:
        """The outcome of a stage without a sign of life."""
        limit = timedelta(seconds=self._task.claimed.resources.stall_timeout_s or 0)
        return self._hang(f"the stage gave no sign of life for {limit} (no metric, no progress, no checkpoint)")

    def _hang(self, error: str) -> Outcome:
        where = stacks.words(self._stacks)
        return autopsy.failed(Cause.HANG, f"{error}; it stood at: {where}", stacks=self._stacks)
