"""The nodes of a plan: what a stage is before anybody runs it.

A method's `plan.py` returns stages; `compile` gives each the part of the spec that it reads; `graph`
orders them; the store and the workers take it from there. Nothing here touches a disk or a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Resources:
    """What one attempt at a stage needs from a worker."""

    gpus: int = 0
    slots: int = 1
    queue: str = "default"
    timeout_s: float | None = None
    launcher: str = "single"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Stage:
    """One node of a plan: a function of (config, inputs, seed) that writes an artifact.

    `reads` lists dotted paths of the spec; the stage sees those parts and no others, so its cache key
    changes exactly when something it reads does. `inputs` maps an input's name to the stage that makes it.
    """

    name: str
    kind: str
    run: str
    """Where the heavy code is, as `package.module:function`; imported only in the stage's own process."""
    reads: tuple[str, ...]
    version: int = 1
    """Raised by whoever changes what the stage computes, so that old artifacts stop matching."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    config: Mapping[str, Any] = field(default_factory=dict)
    """The parts of the resolved spec named by `reads`; filled in by `compile`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the planner decided for this stage itself (an iteration's number, a slice); part of the key."""


@dataclass(frozen=True)
class Plan:
    """A spec, compiled: stages in an order in which every input precedes its reader."""

    name: str
    seed: int
    stages: tuple[Stage, ...]

    def stage(self, name: str) -> Stage:
        """The stage called `name`. Raises KeyError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)
