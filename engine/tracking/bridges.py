"""Which bridges there are, what a spec says of each, and how one is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.spec.base import SpecModel
from engine.spec.secrets import resolve_secrets
from engine.spec.tracking import Mlflow, TensorBoard, Tracking, Wandb
from engine.store.session import Database
from engine.store.tables import RunId
from engine.tracking.bridge import Bridge
from engine.tracking.marks import marks_file, read_marks
from engine.tracking.mirror import Mirror

BLOCKS: Mapping[str, type[SpecModel]] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}
"""A bridge's name, and what a spec may say about it."""


@dataclass(frozen=True)
class Way:
    """One run's way into one tool."""

    name: str
    block: SpecModel


def ways(tracking: Mapping[str, Any]) -> list[Way]:
    """The bridges that a spec's resolved `tracking` asks for."""
    block = Tracking.model_validate(tracking)
    return [Way(name, asked) for name in BLOCKS if (asked := getattr(block, name)) is not None]


def mirror(db: Database, home: Path, run_id: RunId, handle: str, way: Way, beat: Callable[[], None]) -> Mirror:
    """A mirror of the run that goes on from what was remembered below `home`/tracking."""
    folder = home / "tracking"
    marks = read_marks(marks_file(folder, handle, way.name, way.block.model_dump(mode="json")))
    return Mirror(db, run_id, lambda: bridge(way.block, folder, handle), marks, beat=beat)


def bridge(block: SpecModel, folder: Path, handle: str) -> Bridge:
    """The bridge that a block asks for. Raises SpecError for a secret that is not set here."""
    from engine.tracking.mlflow_run import MlflowRun
    from engine.tracking.tensorboard_files import TensorBoardFiles
    from engine.tracking.wandb_run import WandbRun

    told = type(block).model_validate(resolve_secrets(block.model_dump(mode="json"), os.environ))
    match told:
        case TensorBoard():
            return TensorBoardFiles(Path(told.folder or folder / "tensorboard") / handle)
        case Wandb():
            return WandbRun(folder / "wandb", told.project, told.entity, told.mode)
        case Mlflow():
            return MlflowRun(folder / "mlflow", told.uri, told.experiment)
    raise TypeError(f"no bridge is described by {type(block).__name__}")
