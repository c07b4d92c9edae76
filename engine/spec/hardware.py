"""The hardware block: what a run may use, and per-stage exceptions. Leases and launching are the workers'."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, Self

from pydantic import Field, field_serializer, model_validator

from engine.spec.base import Duration, SpecModel, complaint

Device = Literal["auto", "cpu", "cuda"]
Launcher = Literal["single", "torchrun", "deepspeed"]
Parallel = Literal["ddp", "fsdp"]
Offload = Literal["none", "optimizer", "all"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
QUEUE = r"^[a-z0-9][a-z0-9_.-]*$"

ONLY_UNDER = (
    dict.fromkeys(("nodes", "processes"), ("torchrun", "deepspeed"))
    | {"parallel": ("torchrun",), "compile": ("single", "torchrun")}
    | dict.fromkeys(("zero", "offload"), ("deepspeed",))
)
"""Keys that mean something under some launchers only."""


class StageHardware(SpecModel):
    """What one stage uses in place of the run's hardware; keys that are left out stay as they are."""

    device: Device = "auto"
    """Where tensors live; `auto` is a leased GPU if there is one, else the CPU."""
    gpus: int = Field(0, ge=0)
    """GPUs leased for a stage, of each of its nodes. Under `torchrun` and `deepspeed` for the stages that train; the
    others take one."""
    launcher: Launcher = "single"
    """How the processes of a stage that trains start: one alone, a rank a GPU as under torchrun, or the same with
    DeepSpeed's ZeRO."""
    processes: int | None = Field(None, ge=1)
    """Ranks without GPUs, on the CPU; empty: one a GPU. Of each node."""
    nodes: int = Field(1, ge=1)
    """Workers over which the ranks of a stage are spread, usually on as many hosts. Each lends `gpus` and starts
    `processes`; all are leased at once, or none."""
    parallel: Parallel = "ddp"
    """Under `torchrun`: every rank holds the whole model (`ddp`), or a shard of it (`fsdp`: FSDP2)."""
    zero: Literal[1, 2, 3] = 2
    """Under `deepspeed`, what ranks hold a shard of: optimiser states (1), gradients too (2), weights too (3)."""
    offload: Offload = "none"
    """Under `deepspeed`, what rests in main memory: nothing, optimiser states, or with zero: 3 weights too."""
    checkpoint_activations: bool = False
    """Compute each layer a second time in the backward pass: less memory, a third more time."""
    compile: bool = False
    """Train in layers that torch.compile has compiled: tens of seconds at the start. On a CPU hardly worth them."""
    precision: Precision = "auto"
    """Number format of training; `auto` is bfloat16 on a GPU, else float32."""
    queue: str = Field("default", pattern=QUEUE)
    """Which workers take a stage."""
    timeout: Duration | None = None
    """Longest an attempt at a stage may run, such as `2h`; empty: no limit."""
    stall_timeout: Duration | None = 1800.0
    """Longest a stage may go without a sign of life (a metric, a sample, progress, a checkpoint, generation, a training
    step): then its stacks are written to the log, and it ends as `hang`. Empty: no limit."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a stage; empty: a fair share."""


class Hardware(StageHardware):
    """What every stage of a run may use, unless `stages` says otherwise."""

    stages: Mapping[str, StageHardware] = Field(default_factory=dict)
    """Exceptions by the stage's name."""

    @field_serializer("stages")
    def _only_what_was_said(self, stages: Mapping[str, StageHardware]) -> dict[str, dict[str, object]]:
        """An exception is dumped without its defaults: read back, they would override the run's hardware."""
        return {name: stage.model_dump(mode="json", exclude_unset=True) for name, stage in stages.items()}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        mine = {key: getattr(self, key) for key in StageHardware.model_fields}
        _check(self, {key for key, value in mine.items() if value != StageHardware.model_fields[key].default}, "")
        for name, stage in self.stages.items():
            changes = {key: getattr(stage, key) for key in stage.model_fields_set}
            _check(StageHardware.model_construct(**mine | changes), set(changes), f"stages.{name}.")
        return self


def _check(hardware: StageHardware, said: Collection[str], at: str) -> None:
    """Raise the complaint about what contradicts itself; `said` are the keys that were written, `at` where."""
    gpus, processes, launcher = hardware.gpus, hardware.processes, hardware.launcher
    if hardware.device == "cpu" and gpus:
        raise complaint(f"device: cpu leaves {gpus} GPUs idle: set gpus: 0, or another device", at=f"{at}gpus")
    if hardware.device == "cpu" and hardware.precision == "float16":
        raise complaint("float16 needs a GPU: write float32 or bfloat16", at=f"{at}precision")
    for key, launchers in ONLY_UNDER.items():
        if key in said and launcher not in launchers and getattr(hardware, key) is not None:
            raise complaint(f"{key} goes with launcher: {' or '.join(launchers)}, not {launcher}", at=f"{at}{key}")
    if launcher == "single":
        return
    if processes is not None and gpus and processes != gpus:
        raise complaint(f"{processes} processes and {gpus} GPUs: each rank has one. Leave it out", at=f"{at}processes")
    if not gpus and processes is None:
        raise complaint(f"{launcher} starts a rank a GPU: set gpus, or processes for the CPU", at=f"{at}launcher")
    if launcher == "deepspeed" and hardware.offload == "all" and hardware.zero != 3:
        raise complaint(
            f"offload: all moves weights, and zero: {hardware.zero} shards none: write zero: 3", at=f"{at}offload"
        )
