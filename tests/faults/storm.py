"""Faults on a fleet, one after another and several at once, by a schedule that a seed fixes.

The schedule (what, when, which victim, for how long) is the seed's; what the victim is doing at that moment is the
machine's. A storm keeps the number of workers up, and does not end before all its faults are healed.
"""

from __future__ import annotations

import heapq
import itertools
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import ExitCode, Unreachable
from tests.faults import injuries
from tests.faults.fleet import Fleet
from tests.faults.injuries import Injury
from tests.faults.servers import Postgres, Server
from tests.waiting import until

T = TypeVar("T")
TICK_S = 0.05


@dataclass(frozen=True)
class Planned:
    """One fault of a schedule."""

    gap_s: float
    """After the one before."""
    kind: str
    pick: int
    seconds: float


def schedule(seed: int, kinds: Sequence[str], *, every_s: float) -> Iterator[Planned]:
    """Faults without end: every kind once in each round, in random order."""
    chance = random.Random(seed)
    while True:
        for kind in chance.sample(list(kinds), len(kinds)):
            yield Planned(chance.uniform(0.3, 1.7) * every_s, kind, chance.randrange(1000), chance.uniform(0.5, 4.0))


@dataclass
class Storm:
    """A fleet, what it stands on, and the faults that are under way."""

    fleet: Fleet
    size: int = 2
    """Workers to keep up."""
    database: Postgres | None = None
    broker: Server | None = None
    disk: Path | None = None
    hits: Counter[str] = field(default_factory=Counter)
    frozen: set[int] = field(default_factory=set)
    """Workers that are stopped."""
    holding: bool = False
    """Whether a fault holds SQLite's lock."""
    doomed: set[int] = field(default_factory=set)
    """Workers that were killed, or told to leave."""
    strange: list[str] = field(default_factory=list)
    """Workers that ended though nobody asked them to."""
    tell: Callable[[str], None] = lambda kind: None
    """Is told of every hit."""

    def __post_init__(self) -> None:
        self._under_way: list[tuple[float, int, Iterator[float]]] = []
        self._order = itertools.count()

    @property
    def kinds(self) -> Mapping[str, Injury]:
        """The faults that can happen here."""
        found = {**injuries.ANYWHERE, **(injuries.ON_SQLITE if self.database is None else injuries.ON_POSTGRES)}
        if self.broker is not None:
            found |= injuries.ON_A_BROKER
        if self.disk is None:
            del found["fill_disk"]
        return found

    @property
    def held_up(self) -> bool:
        """Whether a write of ours may have to wait for a process that is frozen, or for a lock that a fault holds."""
        return bool(self.frozen) or self.holding

    def hit(self, kind: str) -> None:
        """Count a fault that found a victim."""
        self.hits[kind] += 1
        self.tell(kind)

    def a_worker(self, pick: int) -> subprocess.Popen[bytes] | None:
        """One that lives, is not frozen and was not told to leave."""
        found = [w for w in self.fleet.alive() if w.pid not in self.frozen | self.doomed]
        return found[pick % len(found)] if found else None

    def app(self) -> Any:
        """Celery's application, on the fleet's broker."""
        from workers.app import make_app

        return make_app(self.fleet.settings)

    def strike(self, kind: str, *, pick: int = 0, seconds: float = 1.0) -> bool:
        """Let a fault begin; whether it found a victim at once."""
        before = self.hits[kind]
        self._go_on(self.kinds[kind](self, pick, seconds))
        return self.hits[kind] > before

    def pass_by(self, seconds: float) -> None:
        """Let time pass: faults go on and heal, workers that ended are replaced."""
        end = time.monotonic() + seconds
        while True:
            self._tend()
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                self._go_on(heapq.heappop(self._under_way)[2])
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, TICK_S))

    def await_(self, condition: Callable[[], T | None], what: str) -> T:
        """Let time pass until the condition's value is true; AssertionError after a bounded wait."""

        def look() -> T | None:
            self.pass_by(TICK_S)
            try:
                return condition()
            except Unreachable:
                return None

        return until(look, what)

    def calm(self) -> None:
        """Let every fault heal."""
        while self._under_way:
            self.pass_by(TICK_S)

    def _go_on(self, injury: Iterator[float]) -> None:
        try:
            wait_s = next(injury)
        except (StopIteration, Unreachable):  # over; or the victim cannot even be looked up
            return
        heapq.heappush(self._under_way, (time.monotonic() + wait_s, next(self._order), injury))

    def _tend(self) -> None:
        for worker in self.fleet.workers:
            if worker.poll() not in (None, ExitCode.UNREACHABLE) and worker.pid not in self.doomed:
                self.strange.append(f"worker {worker.pid} ended with {worker.returncode}")
        self.fleet.workers = self.fleet.alive()
        for _ in range(self.size - len(self.fleet.workers)):
            self.fleet.start_worker()
