"""The stage context under a worker: reports go to the store behind the attempt's fence, checkpoints to the home folder.

A checkpoint counts from the moment it is recorded in the store, and it is recorded only after everything that
was reported before it: metrics, samples and evaluations. A stage that is killed at any instruction and goes on
from its newest recorded checkpoint therefore loses no report, and repeats none. While the database is away the
stage goes on: reports and checkpoints' records wait in the attempt's spool, in the same order.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from engine.clock import Clock, utc_now
from engine.errors import DiskError, ResumeError, Unreachable
from engine.log import get_logger
from engine.runtime import checkpoint, left_behind, shelf
from engine.runtime.context import Address, Evaluation, Functions, Restored, Sample, SaveModel, State, Stopped
from engine.runtime.delivery import RETRY_S, Delivery, Hooks
from engine.runtime.interruption import Interruption
from engine.runtime.manifest import read_manifest
from engine.runtime.reports import Checkpointed, Evaluated, Noted, Progressed, Reporter, Rewound, Sampled, TraceRewound
from engine.runtime.seeds import derive
from engine.runtime.shelf import Kept, Shelf
from engine.runtime.spool import Spool
from engine.runtime.stopwatch import Readings, Stopwatch
from engine.runtime.task import Task
from engine.runtime.trace import Trace, TracedFunctions
from engine.runtime.world import ALONE, World
from engine.spec.secrets import resolve_secrets
from engine.store import checkpoints, evaluations
from engine.store.artifact_store import ArtifactStore
from engine.store.fingerprints import Fingerprint
from engine.store.metrics import MetricWriter
from engine.store.pace import switch_often
from engine.store.session import Database
from engine.store.stages import Resume

log = get_logger(__name__)

PATIENCE_S = 5.0
"""How long a stage that is through waits for a database that does not answer, before it leaves its last reports to
its supervisor, in the spool."""
MOST_LOGGED = 500_000
"""Calls of `log` that wait in memory while neither the database nor the disk takes them; with more the stage fails."""
DISK_WITHIN_S = 600.0
"""How long it waits where the disk takes them no more either."""


class EngineContext:
    """See `StageContext`."""

    def __init__(
        self,
        task: Task,
        open_functions: Callable[[Mapping[str, Any], Mapping[str, Address]], Functions],
        stop: threading.Event,
        clock: Clock = utc_now,
        *,
        retry_s: float = RETRY_S,
        interruption: Interruption | None = None,
        world: World = ALONE,
    ) -> None:
        claimed = task.claimed
        self.world, self.resources = world, claimed.resources
        self._task, self._claimed, self._stop, self._clock = task, claimed, stop, clock
        self._open_functions, self._retry_s = open_functions, retry_s
        self._shelf = Shelf(task.checkpoints, claimed.number)
        self._watch = Stopwatch(task.path)
        self._watch.start()
        self._interruption = interruption
        self.trace = Trace(self._keep, None if interruption is None else partial(interruption.reached, "note"))
        self._sampled = 0
        self._rewound = claimed.number == 1
        self._resume = claimed.resume
        self._own: Kept | None = None
        self._recorded_step = -1
        """Of this attempt's newest checkpoint that is in the store."""
        self._readings: dict[int, Readings] = {}
        """Of the stopwatch, at each checkpoint that waits to be recorded."""
        self.config: Mapping[str, Any] = MappingProxyType(resolve_secrets(dict(claimed.config), os.environ))
        self.extra: Mapping[str, Any] = MappingProxyType(dict(claimed.extra))
        self.seed = claimed.seed
        self.output_dir = task.output_dir
        self.device = "cuda" if task.gpus else "cpu"
        self.services: Mapping[str, Address] = MappingProxyType({})

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
        return TracedFunctions(self._open_functions(self.config, self.services), self.trace)

    @property
    def should_stop(self) -> bool:
        """True once the stage was asked to stop, or a newer attempt has begun."""
        return self.world.agree(self._stop.is_set() or ("_delivery" in self.__dict__ and self._delivery.stale))

    def spent(self, activity: str) -> AbstractContextManager[None]:
        """What happens in the `with` block counts as `activity`, less what is counted otherwise within."""
        return self._watch.spent(activity)

    def alive(self) -> None:
        """A sign of life from what comes before the stage's own code."""
        self._watch.live()

    def log(self, step: int, metrics: Mapping[str, float] | None = None, **more: float) -> None:
        """Record metrics at `step`. Raises DiskError where too many wait, for neither database nor disk takes them."""
        self._watch.beat()
        if self._metrics.held > MOST_LOGGED:
            self._keep_metrics()
        self._metrics.log(step, {**metrics, **more} if metrics and more else metrics or more)

    def progress(self, done: float, total: float, note: str = "") -> None:
        """Say how far the stage is; only the newest word counts."""
        self._watch.beat()
        self._delivery.replace(Progressed(done, total, note, self._clock()))

    def sample(self, *samples: Sample) -> None:
        """Record samples."""
        self._watch.beat()
        self._rewind_to(None)
        first = self._sampled
        self._sampled += len(samples)
        self._delivery.put(Sampled(first, samples))

    def evaluation(self, evaluation: Evaluation) -> None:
        """Record an evaluation. Raises DataError for one without finite scores."""
        self._watch.beat()
        # Here and not in the transaction, which may be the only one that the store allows at a time.
        interval = evaluations.bootstrap(evaluations.scores_of(evaluation))
        self._delivery.put(Evaluated(evaluation, interval, self._clock()))

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
            kept = self._shelf.save(
                step, state, models, labels, self._sampled, self.trace.place, reached=self._reached_in_save
            )
        self.trace.flush()
        self._readings[step] = self._watch.read()
        self._own, manifest = kept, kept.manifest
        self._delivery.put(
            Checkpointed(step, tuple(labels), str(kept.path), manifest.sha256, manifest.bytes, self._clock())
        )
        return kept.path

    def restore(self) -> Restored | None:
        """The newest checkpoint that counts, or None. Raises ResumeError where it is damaged, or not to be found."""
        restored = self._restore()
        self.world.agree(None if restored is None else restored.path)
        return restored

    def _restore(self) -> Restored | None:
        if self._own is not None:
            self.trace.rewind(self._own.manifest.fingerprints, self._own.manifest.step)
            self._rewind_trace(self.trace.place)
            return checkpoint.read(self._own.path)
        self._inherit()
        resume = self._resume
        if resume is None:
            return None
        path = Path(resume.uri)
        if not path.is_dir():
            raise ResumeError(
                f"the checkpoint of step {resume.step} is not at {path}: every worker needs the same RLX_HOME, "
                "on a file system that all of them see"
            )
        manifest = read_manifest(path)
        if manifest.sha256 != resume.sha256:
            raise ResumeError(f"{path} is not the checkpoint that was recorded: its manifest has changed")
        restored = checkpoint.read(path)
        self._rewind_to(Kept.at(path, manifest))
        self.trace.rewind(manifest.fingerprints, manifest.step)
        return restored

    def deliver(self) -> bool:
        """Return once everything reported so far is in the store, or, while the database is away, in the spool.

        True where it is in the store. Raises what a delivery failed with, DiskError where neither takes it.
        """
        self.trace.flush()
        if "_spool" not in self.__dict__:
            return True
        with self.spent("waiting"):
            delivered = self._delivery.settle(PATIENCE_S, within_s=DISK_WITHIN_S)
            if "_metrics" in self.__dict__:
                delivered = self._close_metrics(PATIENCE_S if delivered else 0.0) and delivered
        if not delivered:
            log.warning(
                "the database is away, the last reports wait on the disk", extra={"folder": str(self._spool.folder)}
            )
        return delivered

    def close(self) -> None:
        """End what the context has started; what is in the spool stays there, for another process to deliver."""
        self._watch.stop()
        if "_spool" not in self.__dict__:
            self._watch.close()
        elif self._delivery.close():
            self._spool.close()
            self._watch.close()
        if "functions" in self.__dict__:
            self.functions.close()
        if "_db" in self.__dict__:
            self._db.close()

    @cached_property
    def _db(self) -> Database:
        return Database(self._task.settings.database_url)  # connects when it must: the stage may begin in an outage

    @cached_property
    def _spool(self) -> Spool:
        """Ours from the first report on: a stage that reports nothing has nothing to keep."""
        return Spool.open(self._task.settings.spool, self._claimed.stage_id, self._claimed.number)

    @cached_property
    def _delivery(self) -> Delivery:
        return Delivery(
            lambda: self._db,
            Reporter(self._claimed.run_id, self._claimed.stage_id, self._claimed.number),
            self._spool,
            Hooks(self._deliver_metrics, self._recorded, self._keep_metrics, self._tidy_meanwhile),
            retry_s=self._retry_s,
        )

    @cached_property
    def _metrics(self) -> MetricWriter:
        claimed = self._claimed
        switch_often()
        return MetricWriter(self._db, claimed.run_id, claimed.stage_id, claimed.number, self._spool.folder)

    def _deliver_metrics(self) -> None:
        """All metrics logged so far into the store: in the spool alone they would not be behind a checkpoint."""
        try:
            self._keep_metrics()
        except DiskError as error:
            raise Unreachable(f"metrics wait in memory: {error}") from error
        if "_metrics" in self.__dict__ and self._metrics.spooled:
            raise Unreachable("metrics wait in the spool")

    def _keep_metrics(self) -> None:
        """All metrics logged so far into the store or the spool. Raises DiskError."""
        if "_metrics" in self.__dict__:
            self._metrics.flush()

    def _close_metrics(self, patience_s: float) -> bool:
        deadline = time.monotonic() + DISK_WITHIN_S
        while True:
            try:
                return self._metrics.close(patience_s=patience_s)
            except DiskError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(self._retry_s)

    def _inherit(self) -> None:
        """Take over what the attempt before left in its spool here, and with it what we resume from."""
        claimed, spool = self._claimed, self._task.settings.spool
        while not self._rewound:
            try:
                if left_behind.inherit(spool, self._db, claimed):
                    with self._db.read() as session:
                        rows = checkpoints.of_stage(session, claimed.stage_id)
                    self._resume = Resume(rows[-1].step, rows[-1].uri, rows[-1].sha256) if rows else None
                return
            except Unreachable as error:
                # Half taken over is worse than late: what we resume from must be what the store knows.
                log.warning("the database is away, the stage waits to resume", extra={"error": str(error)})
                if self._stop.wait(self._retry_s):
                    raise Stopped from error

    def _keep(self, entries: Sequence[Fingerprint]) -> None:
        self._rewind_to(None)
        self._delivery.put(Noted(tuple(entries)))

    def _reached_in_save(self, moment: Literal["draft", "renamed"]) -> None:
        if self._interruption is not None:
            self._interruption.reached(moment, self.trace.place)

    def _rewind_to(self, kept: Kept | None) -> None:
        """Once, before this attempt's first report: strike out what it is going to sample and to note again."""
        if self._rewound:
            return
        self._rewound = True
        if kept is None:  # what the attempt before left is reported again, from the beginning
            left_behind.drop(self._task.settings.spool, self._claimed.stage_id, self._claimed.number - 1)
        self._delivery.put(Rewound(0, 0) if kept is None else Rewound(kept.attempt, kept.manifest.sampled))
        self._rewind_trace(0 if kept is None else kept.manifest.fingerprints)

    def _rewind_trace(self, place: int) -> None:
        self._delivery.put(TraceRewound(place))

    def _recorded(self) -> None:
        """A checkpoint is in the store. Called by the delivering thread."""
        self._tidy()
        for step in sorted(step for step in list(self._readings) if step <= self._recorded_step):
            self._watch.keep(self._readings.pop(step))

    def _tidy(self) -> None:
        """Let go of what retention does not keep. Called once a checkpoint is recorded."""
        claimed = self._claimed
        with self._db.write() as session:
            rows = checkpoints.of_stage(session, claimed.stage_id)
            surplus = [row for row in rows[:-2] if not row.labels]
            checkpoints.forget(
                session, stage_id=claimed.stage_id, number=claimed.number, steps=[row.step for row in surplus]
            )
            wanted = {row.uri for row in rows} - {row.uri for row in surplus}
            newest = rows[-1].step if rows else -1
        self._recorded_step = max([row.step for row in rows if row.attempt == claimed.number], default=-1)
        for kept in self._shelf.all():
            waits = kept.attempt == claimed.number and kept.manifest.step > newest
            # One that was frozen since it asked the store knows nothing of what its successor has written meanwhile.
            later = kept.attempt > claimed.number
            if str(kept.path) not in wanted and not waits and not later:
                shelf.remove(kept)

    def _tidy_meanwhile(self) -> None:
        """While the database is away: of the checkpoints that wait to be recorded, keep what retention would keep.

        And the first of them, which the store may have recorded without our hearing of it.
        """
        own = [kept for kept in self._shelf.all() if kept.attempt == self._claimed.number]
        waiting = [kept for kept in own if kept.manifest.step > self._recorded_step]
        bearers = {label: kept.path for kept in waiting for label in kept.manifest.labels}
        wanted = {kept.path for kept in [*waiting[:1], *waiting[-2:]]} | set(bearers.values())
        for kept in waiting:
            if kept.path not in wanted:
                shelf.remove(kept)
