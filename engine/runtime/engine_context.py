"""The stage context under a worker: reports go to the store behind the attempt's fence, checkpoints to the home folder.

A checkpoint counts from the moment it is recorded in the store, and it is recorded only after everything that
was reported before it: metrics, samples and evaluations. A stage that is killed at any instruction and goes on
from its newest recorded checkpoint therefore loses no report, and repeats none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from engine.clock import Clock, utc_now
from engine.errors import ResumeError
from engine.runtime import checkpoint, shelf
from engine.runtime.context import Evaluation, Functions, Restored, Sample, SaveModel, State
from engine.runtime.delivery import Delivery, Report, Write
from engine.runtime.seeds import derive
from engine.runtime.shelf import Kept, Shelf
from engine.runtime.stopwatch import Stopwatch
from engine.runtime.task import Task
from engine.spec.secrets import resolve_secrets
from engine.store import checkpoints, evaluations, samples, stages
from engine.store.artifact_store import ArtifactStore
from engine.store.metrics import MetricWriter
from engine.store.session import Database, open_database

DELIVER_WITHIN_S = 600.0
"""How long a stage that is through waits for a database that is away."""


class EngineContext:
    """See `StageContext`."""

    def __init__(
        self,
        task: Task,
        open_functions: Callable[[Mapping[str, Any]], Functions],
        stop: threading.Event,
        clock: Clock = utc_now,
    ) -> None:
        claimed = task.claimed
        self._task, self._claimed, self._stop, self._clock = task, claimed, stop, clock
        self._open_functions = open_functions
        self._delivery = Delivery(lambda: self._db, claimed.stage_id, claimed.number)
        self._shelf = Shelf(task.checkpoints, claimed.number)
        self._watch = Stopwatch(task.pulse)
        self._watch.start()
        self._sampled = 0
        self._rewound = claimed.number == 1
        self._own: Kept | None = None
        self.config: Mapping[str, Any] = MappingProxyType(resolve_secrets(dict(claimed.config), os.environ))
        self.extra: Mapping[str, Any] = MappingProxyType(dict(claimed.extra))
        self.seed = claimed.seed
        self.output_dir = task.output_dir
        self.device = "cuda" if task.gpus else "cpu"
        self.services: Mapping[str, Any] = MappingProxyType({})

    @cached_property
    def rng(self) -> np.random.Generator:
        """A generator seeded from the run's seed and the stage's name."""
        return np.random.default_rng(derive(self.seed, self._claimed.name))

    @cached_property
    def inputs(self) -> Mapping[str, Path]:
        """Local, read-only directories of the input artifacts."""
        store = ArtifactStore(self._task.settings.artifact_url, self._task.settings.home / "cache")
        with self.spent("waiting"):
            return {name: store.fetch(uri, sha256) for name, (sha256, uri) in self._claimed.inputs.items()}

    @cached_property
    def functions(self) -> Functions:
        """The user's functions; their process starts when they are first asked for."""
        return self._open_functions(self.config)

    @property
    def should_stop(self) -> bool:
        """True once the stage was asked to stop, or a newer attempt has begun."""
        return self._stop.is_set() or self._delivery.stale

    def spent(self, activity: str) -> AbstractContextManager[None]:
        """What happens in the `with` block counts as `activity`, less what is counted otherwise within."""
        return self._watch.spent(activity)

    def log(self, step: int, metrics: Mapping[str, float] | None = None, **more: float) -> None:
        """Record metrics at `step`."""
        self._watch.beat()
        self._metrics.log(step, {**metrics, **more} if metrics and more else metrics or more)

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Say how far the stage is; only the newest word counts."""
        self._watch.beat()
        claimed, now = self._claimed, self._clock()
        self._delivery.replace(
            lambda session: stages.progress(
                session, claimed.stage_id, claimed.number, done=done, total=total, note=note, now=now
            )
        )

    def sample(self, *samples_: Sample) -> None:
        """Record samples."""
        self._watch.beat()
        self._rewind_to(None)
        claimed, first = self._claimed, self._sampled
        self._sampled += len(samples_)
        self._put(
            lambda session: samples.add(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                first=first,
                samples=samples_,
            )
        )

    def evaluation(self, evaluation: Evaluation) -> None:
        """Record an evaluation. Raises DataError for one without finite scores."""
        self._watch.beat()
        claimed, now = self._claimed, self._clock()
        # Here and not in the transaction, which may be the only one that the store allows at a time.
        interval = evaluations.bootstrap(evaluations.scores_of(evaluation))
        self._put(
            lambda session: evaluations.record(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                evaluation=evaluation,
                now=now,
                interval=lambda _: interval,
            )
        )

    def checkpoint(
        self,
        step: int,
        state: State,
        *,
        models: Mapping[str, SaveModel] | None = None,
        labels: Sequence[str] = ("latest",),
    ) -> Path:
        """Write a complete training state now; it is recorded once all that was reported before is delivered."""
        self._watch.beat()
        self._delivery.check()
        self._rewind_to(None)
        with self.spent("saving"):
            kept = self._shelf.save(step, state, models, labels, sampled=self._sampled)
        readings = self._watch.read()
        self._own, claimed, now = kept, self._claimed, self._clock()

        def record(session: Session) -> None:
            checkpoints.record(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                step=step,
                labels=labels,
                uri=str(kept.path),
                sha256=kept.manifest.sha256,
                size=kept.manifest.bytes,
                now=now,
            )

        def recorded() -> None:
            self._watch.keep(readings)
            self._tidy()

        self._put(record, before=self._flush_metrics, after=recorded)
        return kept.path

    def restore(self) -> Restored | None:
        """The newest checkpoint that counts, or None. Raises ResumeError where it is damaged, or not to be found."""
        if self._own is not None:
            return checkpoint.read(self._own.path)
        resume = self._claimed.resume
        if resume is None:
            return None
        path = Path(resume.uri)
        if not path.is_dir():
            raise ResumeError(
                f"the checkpoint of step {resume.step} is not at {path}: every worker needs the same RLX_HOME, "
                "on a file system that all of them see"
            )
        manifest = checkpoint.read_manifest(path)
        if manifest.sha256 != resume.sha256:
            raise ResumeError(f"{path} is not the checkpoint that was recorded: its manifest has changed")
        restored = checkpoint.read(path)
        self._rewind_to(Kept.at(path, manifest))
        return restored

    def deliver(self) -> None:
        """Return once everything reported so far is in the store. Raises what a delivery failed with."""
        with self.spent("waiting"):
            self._delivery.drain(DELIVER_WITHIN_S)
            if "_metrics" in self.__dict__:
                self._metrics.close(patience_s=DELIVER_WITHIN_S)

    def close(self) -> None:
        """End what the context has started; what is not delivered by now never will be."""
        self._watch.stop()
        self._delivery.close()
        if "functions" in self.__dict__:
            self.functions.close()
        if "_db" in self.__dict__:
            self._db.close()

    @cached_property
    def _db(self) -> Database:
        return open_database(self._task.settings, create=False)

    @cached_property
    def _metrics(self) -> MetricWriter:
        claimed = self._claimed
        return MetricWriter(self._db, claimed.run_id, claimed.stage_id, claimed.number, self._task.settings.spool)

    def _put(
        self, write: Write, *, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None
    ) -> None:
        self._delivery.put(Report(write, before, after))

    def _flush_metrics(self) -> None:
        if "_metrics" in self.__dict__:
            self._metrics.flush()

    def _rewind_to(self, kept: Kept | None) -> None:
        """Once, before this attempt's first report: strike out the samples that it is going to make again."""
        if self._rewound:
            return
        self._rewound = True
        claimed = self._claimed
        attempt, sampled = (0, 0) if kept is None else (kept.attempt, kept.manifest.sampled)
        self._put(
            lambda session: samples.rewind(
                session, stage_id=claimed.stage_id, number=claimed.number, attempt=attempt, sampled=sampled
            )
        )

    def _tidy(self) -> None:
        """Let go of what retention does not keep. Called once a checkpoint is recorded, by the delivering thread."""
        claimed = self._claimed
        with self._db.write() as session:
            rows = checkpoints.of_stage(session, claimed.stage_id)
            surplus = [row for row in rows[:-2] if not row.labels]
            checkpoints.forget(
                session, stage_id=claimed.stage_id, number=claimed.number, steps=[row.step for row in surplus]
            )
            wanted = {row.uri for row in rows} - {row.uri for row in surplus}
            newest = rows[-1].step
        for kept in self._shelf.all():
            waits = kept.attempt == claimed.number and kept.manifest.step > newest
            if str(kept.path) not in wanted and not waits:
                shelf.remove(kept)
