"""One SIGKILL from outside for `rlx verify-resume`: at a random moment, whatever the stage's process is doing then."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from sqlalchemy import select

from engine.store.processes import process_started
from engine.store.session import Database
from engine.store.tables import Attempt, RunId, Stage
from engine.store.transitions import AttemptStatus


class OutsideKill:
    """Kills the process of one of some stages once, in the first attempt that lives long enough."""

    def __init__(
        self,
        db: Database,
        run_id: RunId,
        within_s: Mapping[str, float],
        *,
        chance: random.Random,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`within_s`: for each stage how long after an attempt was first seen it is killed, at most."""
        self._db, self._run_id, self._within_s = db, run_id, within_s
        self._chance, self._now = chance, now
        self._seen: tuple[str, int] | None = None
        self._due = 0.0
        self.done = False

    def look(self) -> None:
        """Kill, if it is time."""
        if self.done or (found := self._running()) is None:
            return
        stage, number, pid, started = found
        if self._seen != (stage, number):
            self._seen = stage, number
            self._due = self._now() + self._chance.uniform(0, self._within_s[stage])
        if self._now() >= self._due and process_started(pid) == started:
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.kill(pid, signal.SIGKILL)
                self.done = True

    def _running(self) -> tuple[str, int, int, float] | None:
        """The attempt at work, by stage and number, and its process."""
        query = (
            select(Stage.name, Attempt.number, Attempt.pid, Attempt.pid_started)
            .join(Stage, Stage.id == Attempt.stage_id)
            .where(Stage.run_id == self._run_id, Stage.name.in_(self._within_s))
            .where(Attempt.status == AttemptStatus.RUNNING)
        )
        with self._db.read() as session:
            row = session.execute(query).first()
        if row is None or row.pid is None or row.pid_started is None:  # none, or yet to be born
            return None
        return row.name, row.number, row.pid, row.pid_started
