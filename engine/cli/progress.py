"""A run's progress as one watches it: bars on a terminal, plain lines in a pipe; both on stderr.

What is shown comes from `Snapshot`s that `following` reads off the store; nothing here knows the store.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from engine.cli.output import number, one_line, seconds, status, talk

FINISHED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class StageView:
    """One stage, as far as a spectator cares."""

    name: str
    status: str
    done: float = 0.0
    total: float = 0.0
    note: str = ""
    cached: bool = False
    attempt: int = 0
    cause: str | None = None
    error: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    handle: str
    status: str
    stages: tuple[StageView, ...] = ()
    score: float | None = None
    """The latest evaluation's mean."""
    metric: str = "score"
    """Of what."""

    @property
    def standing(self) -> str | None:
        """The latest evaluation in words."""
        return None if self.score is None else f"{self.metric} {self.score:.3f}"

    @property
    def finished(self) -> bool:
        return self.status in FINISHED


class Reporter(Protocol):
    """Shows snapshots to somebody."""

    def update(self, snapshot: Snapshot) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


@dataclass
class Pace:
    """Units a second over the last half minute of a stage, and so how long the rest will take."""

    window_s: float = 30.0
    points: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, time: float, done: float) -> None:
        """Note that `done` units were done at `time`; going backwards (a resumed attempt) starts afresh."""
        if self.points and done < self.points[-1][1]:
            self.points.clear()
        if self.points and done == self.points[-1][1]:
            return
        self.points.append((time, done))
        while len(self.points) > 2 and time - self.points[0][0] > self.window_s:
            self.points.popleft()

    @property
    def rate(self) -> float | None:
        """Units a second; None until two points are known."""
        if len(self.points) < 2:
            return None
        (t0, d0), (t1, d1) = self.points[0], self.points[-1]
        return (d1 - d0) / (t1 - t0) if t1 > t0 else None

    def remaining_s(self, stage: StageView) -> float | None:
        """Seconds until the stage is done, at this pace."""
        rate = self.rate
        return (stage.total - stage.done) / rate if rate and stage.total > 0 else None


def reporter_for(clock: Callable[[], float]) -> Reporter:
    """Bars where stderr is a terminal, lines where it is not."""
    return LiveReporter(clock) if sys.stderr.isatty() else PlainReporter(clock)


class PlainReporter:
    """A line whenever a stage changes its status, passes another tenth, or half a minute has gone by."""

    every_s = 30.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[str, int, float]] = {}
        self._paces: dict[str, Pace] = {}

    def update(self, snapshot: Snapshot) -> None:
        now = self._clock()
        for stage in snapshot.stages:
            pace = self._paces.setdefault(stage.name, Pace())
            if stage.status == "running":
                pace.add(now, stage.done)
            tenth = int(10 * stage.done / stage.total) if stage.total > 0 else 0
            before = self._seen.get(stage.name)
            if stage.status in ("waiting", "ready") and stage.cause is None:
                self._seen[stage.name] = (stage.status, tenth, now)
                continue
            changed = before is None or before[0] != stage.status or before[1] != tenth
            if changed or (stage.status == "running" and before is not None and now - before[2] >= self.every_s):
                self._seen[stage.name] = (stage.status, tenth, now)
                talk(f"{snapshot.handle} {_described(stage, pace, snapshot.standing)}")

    def message(self, text: str) -> None:
        talk(text)

    def close(self) -> None:
        """Nothing to put away."""


class LiveReporter:
    """A bar a stage, redrawn in place; messages scroll above."""

    def __init__(self, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._tasks: dict[str, Any] = {}
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=True),
            BarColumn(bar_width=10 if self._console.width < 80 else 24),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            transient=False,
            refresh_per_second=8,
        )
        self._progress.start()

    def update(self, snapshot: Snapshot) -> None:
        from rich.markup import escape

        now = self._clock()
        for stage in snapshot.stages:
            pace = self._paces.setdefault(stage.name, Pace())
            if stage.status == "running":
                pace.add(now, stage.done)
            name = f"[{RICH_COLOURS.get(stage.status, 'default')}]{escape(stage.name):<9}[/]"
            if stage.name not in self._tasks:
                self._tasks[stage.name] = self._progress.add_task(name, total=1.0, words="")
            total, done = bar(stage)
            words = _words(stage, pace, snapshot.standing if stage.status == "running" else None)
            self._progress.update(self._tasks[stage.name], description=name, total=total, completed=done, words=words)

    def message(self, text: str) -> None:
        self._console.print(text, markup=False)

    def close(self) -> None:
        self._progress.stop()


RICH_COLOURS: Mapping[str, str] = {
    "succeeded": "green",
    "running": "cyan",
    "failed": "red",
    "cancelled": "yellow",
    "ready": "blue",
    "waiting": "bright_black",
}


def bar(stage: StageView) -> tuple[float | None, float]:
    """(total, completed) of a stage's bar: full once it succeeded, pulsing while it runs without a known total."""
    if stage.status == "succeeded":
        return 1.0, 1.0
    if stage.total > 0:
        return stage.total, stage.done
    return (None, 0.0) if stage.status == "running" else (1.0, 0.0)


def _described(stage: StageView, pace: Pace, standing: str | None) -> str:
    return f"{stage.name}: {status(stage.status, err=True)} {_words(stage, pace, standing)}".rstrip()


def _words(stage: StageView, pace: Pace, standing: str | None) -> str:
    """What stands beside a bar: count, rate, time left, latest evaluation, note; or how it ended."""
    if stage.status == "succeeded":
        return "from the cache" if stage.cached else f"in {seconds(_elapsed(stage))}"
    if stage.status == "failed":
        return f"{stage.cause}: {one_line(stage.error or '')[:120]}"
    if stage.status == "ready" and stage.cause is not None:
        return f"tries again after {stage.cause}: {one_line(stage.error or '')[:100]}"
    if stage.status != "running":
        return ""
    parts = []
    if stage.total > 0:
        parts.append(f"{_count(stage.done)}/{_count(stage.total)}")
    if pace.rate:
        parts.append(f"{number(pace.rate)}/s" if pace.rate >= 0.1 else f"{seconds(1 / pace.rate)} each")
    left = pace.remaining_s(stage)
    if left is not None:
        parts.append(f"{seconds(left)} left")
    if standing is not None:
        parts.append(standing)
    if stage.attempt > 1:
        parts.append(f"attempt {stage.attempt}")
    if stage.note:
        parts.append(one_line(stage.note)[:60])
    return "  ".join(parts)


def _count(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.1f}"


def _elapsed(stage: StageView) -> float | None:
    if stage.started_at is None or stage.finished_at is None:
        return None
    return (stage.finished_at - stage.started_at).total_seconds()
