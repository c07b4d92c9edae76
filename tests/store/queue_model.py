"""What should become of runs, said as plainly as possible: the model that the store's state machine is held against.

Written from the promises alone; it knows no SQL, no lock and no message. What a rule does to the store it does
here too, and afterwards both must look the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from engine.store.tables import Run, StageId

ATTEMPTS = 3
"""How often a stage may fail."""
PLAN = {"a": (), "b": ("a",), "c": ("a", "d"), "d": (), "e": ("b", "c")}
OVER = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Saved:
    """A checkpoint: its step, who wrote it, and what had been told before it."""

    step: int
    attempt: int
    sampled: int
    """How many samples its own attempt had reported before."""
    told: tuple[str, ...]


@dataclass
class StageModel:
    """What one stage should look like."""

    id: StageId
    status: str = "waiting"
    attempt: int = 0
    failures: int = 0
    not_before: datetime | None = None
    surely_from: datetime | None = None
    """Back-off: not before the one, surely from the other on; in between it depends on the attempt."""
    heard: bool = False
    """Whether the broker was told since it became ready."""
    lease_until: datetime | None = None
    worker: int | None = None
    devices: frozenset[str] = frozenset()
    step: int = 0
    """The last one that was reported."""
    told: list[str] = field(default_factory=list)
    """Texts of its samples, in the order in which they were made."""
    sampled: int = 0
    """How many of them the current attempt made."""
    saved: Saved | None = None
    """The newest checkpoint."""
    best: int = 0
    """The highest step that any attempt reported: metrics are replaced, never struck out."""

    def due(self, now: datetime) -> bool:
        """Whether a worker may take it."""
        return self.status == "ready" and (self.not_before is None or self.not_before <= now)

    def surely_due(self, now: datetime) -> bool:
        """Whether a worker that asks for it must get it."""
        return self.due(now) and (self.surely_from is None or self.surely_from <= now)

    def overdue(self, now: datetime) -> bool:
        """Whether its worker was silent for too long."""
        return self.status == "running" and self.lease_until is not None and self.lease_until <= now

    def begin(self, worker: int, device: str, until: datetime) -> None:
        """A worker takes it: from its last checkpoint, what was told since is told again."""
        self.status, self.attempt = "running", self.attempt + 1
        self.worker, self.devices, self.lease_until = worker, frozenset({device}), until
        self.sampled = 0
        self.step, self.told = (self.saved.step, list(self.saved.told)) if self.saved else (0, [])

    def report(self, text: str) -> None:
        """It has made a step, and a sample."""
        self.step, self.sampled = self.step + 1, self.sampled + 1
        self.best = max(self.best, self.step)
        self.told.append(text)

    def save(self) -> None:
        """It has written a checkpoint."""
        self.saved = Saved(self.step, self.attempt, self.sampled, tuple(self.told))

    def leave(self) -> None:
        """Its attempt is over: nobody holds anything."""
        self.worker, self.devices, self.lease_until = None, frozenset(), None


@dataclass
class RunModel:
    """What one run should look like."""

    run: Run
    stages: dict[str, StageModel] = field(default_factory=dict)
    status: str = "queued"
    stop: bool = False

    def copy(self) -> RunModel:
        """A model to try something out on."""
        return replace(self, stages={name: replace(stage) for name, stage in self.stages.items()})

    def follow(self) -> None:
        """What a change of one stage means for the others and for the run."""
        changed = True
        while changed:
            changed = False
            for name, stage in self.stages.items():
                inputs = [self.stages[producer].status for producer in PLAN[name]]
                if stage.status != "waiting":
                    continue
                if self.stop or "failed" in inputs or "cancelled" in inputs:
                    stage.status, changed = "cancelled", True
                elif all(status == "succeeded" for status in inputs):
                    stage.status, stage.heard, changed = "ready", False, True
        ends = {stage.status for stage in self.stages.values()}
        if ends <= set(OVER) and self.status not in OVER:
            self.status = "succeeded" if ends == {"succeeded"} else "cancelled" if self.stop else "failed"

    def succeed(self, stage: StageModel) -> None:
        """An attempt ended well."""
        stage.status = "succeeded"
        stage.leave()
        self.follow()

    def give_up(self, stage: StageModel, now: datetime, *, counts: bool, retry: bool, delay_s: float) -> None:
        """An attempt ended without success."""
        stage.leave()
        before = stage.failures
        stage.failures += counts
        if self.stop:
            stage.status = "cancelled"
        elif retry and (not counts or stage.failures < ATTEMPTS):
            stage.status, stage.heard = "ready", False
            wait = timedelta(seconds=delay_s * 2**before)
            stage.not_before, stage.surely_from = now + wait, now + 1.25 * wait
        else:
            stage.status = "failed"
        self.follow()

    def lose(self, stage: StageModel, now: datetime) -> None:
        """Its worker fell silent."""
        self.give_up(stage, now, counts=True, retry=True, delay_s=0)

    def request_stop(self) -> None:
        """Somebody cancels a run that has not ended."""
        self.stop, self.status = True, "stopping"
        for stage in self.stages.values():
            if stage.status in ("waiting", "ready"):
                stage.status = "cancelled"
        self.follow()

    def resume(self) -> None:
        """Somebody takes up a run that failed or was cancelled."""
        self.status, self.stop = "queued", False
        for stage in self.stages.values():
            if stage.status in ("failed", "cancelled"):
                stage.status, stage.failures, stage.not_before, stage.surely_from = "waiting", 0, None, None
        self.follow()


def running(models: Mapping[Any, RunModel]) -> list[tuple[RunModel, StageModel]]:
    """Stages that a worker is at, with their runs."""
    return [(model, stage) for model in models.values() for stage in model.stages.values() if stage.status == "running"]
