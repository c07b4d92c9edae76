"""A complete stage context with no store: what a stage reports stays in lists, for a test or a notebook to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import SpecError
from engine.plan.stage import Resources
from engine.runtime import checkpoint, shelf
from engine.runtime.context import Address, Evaluation, Functions, Restored, Sample, SaveModel, State
from engine.runtime.seeds import derive
from engine.runtime.shelf import Shelf
from engine.runtime.stopwatch import Stopwatch
from engine.runtime.trace import Trace, TracedFunctions
from engine.runtime.world import ALONE, World
from engine.store.fingerprints import Fingerprint
from engine.store.spent import Times


@dataclass(frozen=True)
class Point:
    """One metric at one step."""

    step: int
    key: str
    value: float


@dataclass(frozen=True)
class Progress:
    """One report of progress."""

    done: float
    total: float
    note: str


class LocalContext:
    """See `StageContext`. The lists `points`, `samples`, `evaluations` and `reports` hold what was reported,
    `fingerprints` what was noted in this process."""

    def __init__(
        self,
        config: Mapping[str, Any],
        seed: int,
        output_dir: Path,
        inputs: Mapping[str, Path] | None = None,
        functions: Functions | None = None,
        device: str = "cpu",
        checkpoint_dir: Path | None = None,
        *,
        extra: Mapping[str, Any] | None = None,
        services: Mapping[str, Address] | None = None,
        resources: Resources | None = None,
        name: str = "stage",
    ) -> None:
        self.world: World = ALONE
        self.resources = resources or Resources()
        self.config, self.seed, self.device = config, seed, device
        self.extra: Mapping[str, Any] = extra or {}
        self.inputs: Mapping[str, Path] = inputs or {}
        self.services: Mapping[str, Address] = services or {}
        self.output_dir = output_dir
        output_dir.mkdir(parents=True, exist_ok=True)
        self.rng = np.random.default_rng(derive(seed, name))
        self.should_stop = False
        self.points: list[Point] = []
        self.samples: list[Sample] = []
        self.evaluations: list[Evaluation] = []
        self.reports: list[Progress] = []
        self._watch = Stopwatch()
        self._watch.start()
        self._fingerprints: dict[int, Fingerprint] = {}
        self.trace = Trace(lambda entries: self._fingerprints.update({entry.place: entry for entry in entries}))
        self._functions = None if functions is None else TracedFunctions(functions, self.trace)
        self._shelf = Shelf(checkpoint_dir or output_dir.with_name(f"{output_dir.name}.checkpoints"))

    @property
    def functions(self) -> Functions:
        """The functions given at construction. Raises SpecError where there are none."""
        if self._functions is None:
            raise SpecError("this stage asks for the user's functions, but its context was given none")
        return self._functions

    @property
    def fingerprints(self) -> list[Fingerprint]:
        """The stage's stream, from where this process took it up."""
        self.trace.flush()
        return [self._fingerprints[place] for place in sorted(self._fingerprints)]

    def request_stop(self) -> None:
        """Ask the stage to stop, as a cancel or a signal does under a worker."""
        self.should_stop = True

    def spent(self, activity: str) -> AbstractContextManager[None]:
        """What happens in the `with` block counts as `activity`; `times` has the sums."""
        return self._watch.spent(activity)

    @property
    def times(self) -> Times:
        """Seconds of each activity so far."""
        return self._watch.read().total

    def log(self, step: int, metrics: Mapping[str, float] | None = None, **more: float) -> None:
        """Record metrics at `step`."""
        self._watch.beat()
        self.points += [Point(step, key, float(value)) for key, value in {**(metrics or {}), **more}.items()]

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in the order reported; a repeated step replaces the earlier value."""
        return list({point.step: point.value for point in self.points if point.key == key}.items())

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Record how far the stage is."""
        self.reports.append(Progress(done, total, note))

    def sample(self, *samples: Sample) -> None:
        """Record samples."""
        self.samples += samples

    def evaluation(self, evaluation: Evaluation) -> None:
        """Record an evaluation."""
        self.evaluations.append(evaluation)

    def checkpoint(
        self,
        step: int,
        state: State,
        *,
        models: Mapping[str, SaveModel] | None = None,
        labels: Sequence[str] = ("latest",),
    ) -> Path:
        """Write a complete training state; surplus ones go, as under a worker."""
        self.trace.flush()
        with self.spent("saving"):
            path = self._shelf.save(step, state, models, labels, fingerprints=self.trace.place).path
            for surplus in self._shelf.surplus():
                shelf.remove(surplus)
        return path

    def restore(self) -> Restored | None:
        """The newest checkpoint, or None. Raises ResumeError for a damaged one."""
        newest = self._shelf.newest()
        if newest is None:
            return None
        self.trace.rewind(newest.manifest.fingerprints, newest.manifest.step)
        return checkpoint.read(newest.path)

    def labelled(self, label: str) -> Path | None:
        """The folder of the newest checkpoint that claims `label`."""
        kept = self._shelf.labelled(label)
        return None if kept is None else kept.path
