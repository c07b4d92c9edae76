"""The tracking block: where else a run's metrics are shown. `engine.tracking` mirrors them; no stage reads this."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from engine.spec.base import SpecModel


class TensorBoard(SpecModel):
    """Event files for TensorBoard."""

    folder: str | None = None
    """Where the run's folder is made, relative to the spec that names it; empty: RLX_HOME/tracking/tensorboard."""


class Wandb(SpecModel):
    """A run of Weights & Biases."""

    project: str | None = Field(None, min_length=1)
    """Empty: the experiment's name."""
    entity: str | None = Field(None, min_length=1)
    """A user or a team; empty: yours."""
    mode: Literal["offline", "online"] = "offline"
    """offline writes into RLX_HOME/tracking/wandb, for `wandb sync`; online needs the network and WANDB_API_KEY."""


class Mlflow(SpecModel):
    """A run of MLflow."""

    uri: str | None = Field(None, min_length=1)
    """The tracking server, or a database; empty: SQLite in RLX_HOME/tracking/mlflow. A password is `${env:NAME}`."""
    experiment: str | None = Field(None, min_length=1)
    """Empty: the experiment's name."""


class Tracking(SpecModel):
    """Where a run's metrics are mirrored while it runs; `{}` takes a bridge's defaults. Needs `rlx[tracking]`."""

    tensorboard: TensorBoard | None = None
    """Event files for TensorBoard."""
    wandb: Wandb | None = None
    """Weights & Biases, offline or online."""
    mlflow: Mlflow | None = None
    """MLflow, into a database or to a server."""
