"""The nodes of a plan: what a stage is before anybody runs it.

A method's `plan.py` returns stages; `compile` gives each the part of the spec that it reads; `graph`
orders them; the store and the workers take it from there. Nothing here touches a disk or a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.spec.services import Service


@dataclass(frozen=True)
class Needs:
    """So many slots and GPUs: what an attempt takes, what a worker lends, what is left of it."""

    slots: int = 0
    gpus: int = 0

    def within(self, other: Needs) -> bool:
        """Whether `other` has at least this much of both."""
        return self.slots <= other.slots and self.gpus <= other.gpus

    def __add__(self, other: Needs) -> Needs:
        return Needs(self.slots + other.slots, self.gpus + other.gpus)

    def __sub__(self, other: Needs) -> Needs:
        """What is left of this; never less than nothing."""
        return Needs(max(0, self.slots - other.slots), max(0, self.gpus - other.gpus))

    def __str__(self) -> str:
        parts = ((self.gpus, "GPU"), (self.slots, "slot"))
        return " and ".join(f"{count} {kind}{'s' * (count != 1)}" for count, kind in parts if count) or "nothing"


def gpus_of(services: Mapping[str, Any]) -> int:
    """GPUs that are leased for these services; what nobody starts here has none to ask for."""
    return sum(int(service.get("gpus", 0)) for service in services.values())


@dataclass(frozen=True)
class Resources:
    """What one attempt at a stage needs from a worker."""

    gpus: int = 0
    """The stage's own and those of its services."""
    slots: int = 1
    queue: str = "default"
    timeout_s: float | None = None
    stall_timeout_s: float | None = 1800.0
    """Longest without a sign of life."""
    launcher: str = "single"
    processes: int | None = None
    nodes: int = 1
    """Workers that carry it out together; gpus, slots and processes are each one's."""
    parallel: str = "ddp"
    zero: int = 2
    offload: str = "none"
    checkpoint_activations: bool = False
    compile: bool = False
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    light: bool = False
    """It works without torch, and without a GPU: its process is forked from a small parent, for a fraction of the
    cost, and may have served another light stage of its run that left nothing behind. Torch can be imported all the
    same, for seconds. Said by the planner, not by the spec."""

    @property
    def ranks(self) -> int:
        """How many processes the stage's code runs in, over all its nodes."""
        return self.nodes * self.node_ranks

    @property
    def node_ranks(self) -> int:
        """How many of them one node starts."""
        return 1 if self.launcher == "single" else (self.processes or self.gpus)

    @property
    def needs(self) -> Needs:
        """What is leased for it of each node: at least one slot, and a GPU where it insists on CUDA."""
        return Needs(max(1, self.slots), max(self.gpus, 1 if self.device == "cuda" else 0))


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
    distributed: bool = False
    """Its code can run in several processes at once, as `hardware.launcher` says; others run in one, on one GPU."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The parts of the resolved spec named by `reads`; filled in by `compile`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the planner decided for this stage itself (an iteration's number, a slice); part of the key."""
    services: tuple[str, ...] = ()
    """Names of services of the spec that run beside it; `compile` puts them into its config."""
    brings: Mapping[str, Service] = field(default_factory=dict)
    """Services that its planner asks for, which the spec need not declare."""


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
