"""The stage context of every rank but the first: the same inputs, and nobody who hears its reports.

What all ranks must know alike (whether to stop, what to resume from) the first one tells; files are its alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from engine.runtime import checkpoint
from engine.runtime.context import Address, Evaluation, Functions, Restored, Sample, SaveModel, State
from engine.runtime.seeds import derive
from engine.runtime.task import Task
from engine.runtime.trace import SILENT
from engine.runtime.world import World
from engine.spec.secrets import resolve_secrets
from engine.store.artifact_store import ArtifactStore

OpenFunctions = Callable[[Mapping[str, Any], Mapping[str, Address]], Functions]
NOWHERE = Path(os.devnull)


class FollowerContext:
    """See `StageContext`."""

    def __init__(self, task: Task, open_functions: OpenFunctions, world: World) -> None:
        claimed = task.claimed
        self._task, self._claimed, self._open_functions = task, claimed, open_functions
        self.world, self.resources, self.trace = world, claimed.resources, SILENT
        self.config: Mapping[str, Any] = MappingProxyType(resolve_secrets(dict(claimed.config), os.environ))
        self.extra: Mapping[str, Any] = MappingProxyType(dict(claimed.extra))
        self.seed = claimed.seed
        self.device = "cuda" if task.gpus else "cpu"
        nothing: Mapping[str, Address] = {}
        self.services: Mapping[str, Address] = world.agree(nothing)  # the first rank's

    @property
    def output_dir(self) -> Path:
        """Raises RuntimeError: what the ranks find out together, the first one writes."""
        raise RuntimeError("only the first rank has an output folder: ask `world.rank` before writing")

    @cached_property
    def rng(self) -> np.random.Generator:
        """The same as every other rank's."""
        return np.random.default_rng(derive(self.seed, self._claimed.name))

    @cached_property
    def inputs(self) -> Mapping[str, Path]:
        """Local, read-only directories of the input artifacts."""
        store = ArtifactStore(self._task.settings.artifact_url, self._task.settings.home / "cache")
        return {name: store.fetch(uri, sha256) for name, (sha256, uri) in self._claimed.inputs.items()}

    @cached_property
    def functions(self) -> Functions:
        """The user's functions, in a process of this rank's own."""
        return self._open_functions(self.config, self.services)

    @property
    def should_stop(self) -> bool:
        """What the first rank says."""
        return self.world.agree(False)

    def spent(self, activity: str) -> AbstractContextManager[None]:
        return nullcontext()

    def log(self, step: int, metrics: Mapping[str, float] | None = None, **more: float) -> None: ...

    def progress(self, done: float, total: float, note: str = "") -> None: ...

    def sample(self, *samples: Sample) -> None: ...

    def evaluation(self, evaluation: Evaluation) -> None: ...

    def checkpoint(
        self,
        step: int,
        state: State,
        *,
        models: Mapping[str, SaveModel] | None = None,
        labels: Sequence[str] = ("latest",),
    ) -> Path:
        """Take part in what the first rank's savers gather."""
        for save in (models or {}).values():
            save(NOWHERE)
        return NOWHERE

    def restore(self) -> Restored | None:
        """The checkpoint that the first rank resumes from."""
        path = self.world.agree(None)
        return None if path is None else checkpoint.read(path)

    def close(self) -> None:
        """End what the context has started."""
        if "functions" in self.__dict__:
            self.functions.close()
