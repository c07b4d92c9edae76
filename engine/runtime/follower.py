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

from engine.errors import NotFound, ResumeError
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
        """Local, read-only directories of the input artifacts. Raises NotFound where this node cannot see one."""
        store = ArtifactStore(self._task.settings.artifact_url, self._task.settings.home / "cache")
        try:
            return {name: store.fetch(uri, sha256) for name, (sha256, uri) in self._claimed.inputs.items()}
        except NotFound as error:
            raise NotFound(f"{error}{self._unseen()}") from error

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
        told: Path | None = None
        path = self.world.agree(told)
        if path is not None and not path.is_dir():
            raise ResumeError(f"the checkpoint to go on from is not at {path}{self._unseen()}")
        return None if path is None else checkpoint.read(path)

    def _unseen(self) -> str:
        """What to do where this node does not see what the first one does."""
        if (gang := self._claimed.gang) is None:
            return ""
        return f"; {gang.name(gang.node)} sees no such folder: every node needs the same RLX_HOME, or RLX_ARTIFACTS"

    def close(self) -> None:
        """End what the context has started."""
        if "functions" in self.__dict__:
            self.functions.close()
