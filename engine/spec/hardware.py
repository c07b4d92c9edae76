"""The hardware block: what a run may use, and per-stage exceptions. Leases and launching are the workers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_serializer, model_validator

from engine.spec.base import Duration, SpecModel, complaint

Device = Literal["auto", "cpu", "cuda"]
Launcher = Literal["single", "torchrun", "deepspeed"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
QUEUE = r"^[a-z0-9][a-z0-9_.-]*$"


class StageHardware(SpecModel):
    """What one stage uses in place of the run's hardware; keys that are left out stay as they are."""

    device: Device = "auto"
    """Where tensors live."""
    gpus: int = Field(0, ge=0)
    """GPUs leased for the stage."""
    launcher: Launcher = "single"
    """How its processes start."""
    precision: Precision = "auto"
    """Number format of training."""
    queue: str = Field("default", pattern=QUEUE)
    """Which workers take it."""
    timeout: Duration | None = None
    """Longest an attempt may run, such as `2h`; empty: no limit."""
    stall_timeout: Duration | None = 1800.0
    """Longest it may go without a sign of life; empty: no limit."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; empty: a fair share."""


class Hardware(SpecModel):
    """What every stage of a run may use, unless `stages` says otherwise."""

    device: Device = "auto"
    """Where tensors live; `auto` is a leased GPU if there is one, else the CPU."""
    gpus: int = Field(0, ge=0)
    """GPUs leased for a stage."""
    launcher: Launcher = "single"
    """How a stage's processes start; the others want more than one GPU."""
    precision: Precision = "auto"
    """Number format of training; `auto` is bfloat16 on a GPU, else float32."""
    queue: str = Field("default", pattern=QUEUE)
    """Which workers take the run's stages."""
    timeout: Duration | None = None
    """Longest an attempt at a stage may run, such as `2h`; empty: no limit."""
    stall_timeout: Duration | None = 1800.0
    """Longest a stage may go without a sign of life (a metric, a sample, progress, a checkpoint, generation, a training
    step): then its stacks are written to the log, and it ends as `hang`. Empty: no limit."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of a stage; empty: a fair share."""
    stages: Mapping[str, StageHardware] = Field(default_factory=dict)
    """Exceptions by the stage's name."""

    @field_serializer("stages")
    def _only_what_was_said(self, stages: Mapping[str, StageHardware]) -> dict[str, dict[str, object]]:
        """An exception is dumped without its defaults: read back, they would override the run's hardware."""
        return {name: stage.model_dump(mode="json", exclude_unset=True) for name, stage in stages.items()}

    @model_validator(mode="after")
    def _device_fits(self) -> Hardware:
        if self.device == "cpu" and self.gpus:
            raise complaint(f"device: cpu leaves {self.gpus} GPUs idle: set gpus: 0, or another device", at="gpus")
        if self.device == "cpu" and self.precision == "float16":
            raise complaint("float16 needs a GPU: write float32 or bfloat16", at="precision")
        return self
