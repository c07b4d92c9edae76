"""The composition root of a stage's process: here the runtime meets the user's functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import SpecError
from engine.functions.served import open_scored
from engine.runtime.child import run_stage
from engine.runtime.context import Address, Functions
from engine.runtime.task import Task


def main(path: Path) -> int:
    """Run the task at `path` and leave its outcome beside it; the exit code of the process, 0 where it succeeded."""
    task = Task.read(path)
    outcome = run_stage(task, open_configured)
    task.write_outcome(outcome)
    return 0 if outcome.kind == "succeeded" else 1


def open_configured(config: Mapping[str, Any], services: Mapping[str, Address]) -> Functions:
    """The functions of the dataset block that a stage reads. Raises SpecError where it reads none."""
    if config.get("dataset") is None:
        raise SpecError("the stage asks for the user's functions, but does not declare to read `dataset`")
    return open_scored(config, services)
