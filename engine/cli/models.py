"""Models and checkpoints that earlier runs made, turned into the directories that a plan names.

Stages know no store: what `run:<handle>@<label>` means is settled when a plan is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import ModelError, NotFound
from engine.plan.hashing import sha256_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from engine.plan.stage import Plan, Stage
    from engine.store.tables import Run

_SMALL = 4 << 20
"""Bytes up to which a model's file is hashed by its content."""
PREFERRED = ("policy", "generator")
"""Which of a checkpoint's models is meant where it holds several."""
PREPARES = ".prepare"
"""How the kind of a stage ends that makes or resolves the spec's model."""


@dataclass(frozen=True)
class FoundCheckpoint:
    """One checkpoint of a run."""

    handle: str
    stage: str
    step: int
    path: Path
    sha256: str


def with_models(plan: Plan, model_name: str) -> Plan:
    """The plan with what the names of its model and its services' models lead to: a run's checkpoint, or the content
    of a local directory.

    Any other plan stays as it is. Raises NotFound or ModelError.
    """
    plan = replace(plan, stages=tuple(_with_served(stage) for stage in plan.stages))
    found = led_to(model_name)
    return _with_extra(plan, {f"model_{key}": value for key, value in found.items()}) if found else plan


def led_to(name: str, preferred: Sequence[str] = PREFERRED) -> dict[str, str]:
    """Where a model's name leads: `path` and `sha256` of a run's checkpoint, `content` of a directory; else nothing.

    Raises NotFound or ModelError.
    """
    from engine.lm.reference import parse

    if parse(name).kind == "path":
        folder = Path(name).expanduser()
        return {"content": content(folder)} if folder.is_dir() else {}
    if not name.startswith("run:"):
        return {}
    from engine.cli.places import required_store
    from engine.store import runs

    handle, _, label = name.removeprefix("run:").partition("@")
    # `run:@last@best`: the handle itself may begin with an @.
    if not handle:
        last, _, label = label.partition("@")
        handle = f"@{last}"
    with required_store().read() as session:
        found = checkpoint(session, runs.find(session, handle), label or "best")
    return {"path": str(model_folder(found.path, preferred)), "sha256": found.sha256}


def _with_served(stage: Stage) -> Stage:
    """The stage, told what its services' models are: it counts in its key, and says where they are started from."""
    served: dict[str, dict[str, dict[str, str]]] = {}
    for name, service in stage.config.get("services", {}).items():
        if service["kind"] == "endpoint":  # its model's name means something there, and nothing here
            continue
        preferred = ("reward", *PREFERRED) if service["kind"] == "reward" else PREFERRED
        roles = {role: led_to(service[role], preferred) for role in ("model", "lora") if service.get(role)}
        if found := {role: told for role, told in roles.items() if told}:
            served[name] = found
    return replace(stage, extra={**stage.extra, "served": served}) if served else stage


def content(folder: Path) -> str:
    """A hash that changes when a file below `folder` does: by content where it is small, by size and time where not.

    Weights of many gigabytes would take minutes to read, and a plan has to be quick.
    """
    told = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        stat = path.stat()
        if stat.st_size <= _SMALL:
            said = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            said = f"{stat.st_size} {stat.st_mtime_ns}"
        told.append([path.relative_to(folder).as_posix(), said])
    return sha256_of(told)


def _with_extra(plan: Plan, extra: Mapping[str, str]) -> Plan:
    """The plan whose models are told more about: it counts in their cache keys."""
    stages = tuple(
        replace(stage, extra={**stage.extra, **extra}) if stage.kind.endswith(PREPARES) else stage
        for stage in plan.stages
    )
    return replace(plan, stages=stages)


def checkpoint(session: Session, run: Run, label: str) -> FoundCheckpoint:
    """The checkpoint of a run by its label (`best`, `latest`, `step-40`). Raises NotFound where it is gone, too."""
    from engine.store import checkpoints
    from engine.store.tables import Stage

    found = checkpoints.find(session, run, label)
    path = Path(found.uri.removeprefix("file://"))
    if not path.is_dir():
        raise NotFound(f"the checkpoint step-{found.step} of {run.handle} is gone from {path}")
    return FoundCheckpoint(run.handle, session.get_one(Stage, found.stage_id).name, found.step, path, found.sha256)


def model_folder(path: Path, preferred: Sequence[str] = PREFERRED) -> Path:
    """The Hugging Face directory in a checkpoint. Raises ModelError where there is none, or no telling which."""
    folders = sorted(folder.parent for folder in path.glob("*/*config.json"))
    names: Sequence[str] = list(dict.fromkeys(folder.name for folder in folders))
    for name in (*preferred, *(names if len(names) == 1 else ())):
        if name in names:
            return path / name
    raise ModelError(f"{path} holds no model, or none called {' or '.join(preferred)}: {', '.join(names) or 'nothing'}")
