"""Services that wait for the next stage of their run: how they are found, taken over and ended.

Each has a socket in the home's folder `run/`, as long as its keeper lives, whose name says whose it is. Only what is
of the same run, the same worker, the same definition and the same GPUs is taken over. Who may end one is the worker,
before it lends its GPUs to another stage and when its run needs it no more (`workers.kept`).
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.plan.hashing import sha256_of
from engine.runtime import trees
from engine.runtime.door import knock
from engine.runtime.line import Line
from engine.store.processes import host_name

_SUFFIX = ".kept"
_PATIENCE_S = 20.0
_ANSWER_S = 5.0
_TERMS = frozenset({"keep", "start_timeout"})
"""What two stages may say differently of the same service."""


@dataclass(frozen=True)
class Owner:
    """The one worker and run whose stages may share a service, and where its socket is."""

    folder: Path
    run: str
    worker: tuple[int, float]
    """Its pid and start time."""
    declared: Mapping[str, Any]
    """The stage's services as they are stored, secrets by their names: what the worker compares."""

    def door(self, service: str, place: Mapping[str, Any], gpus: tuple[str, ...]) -> Path:
        """Where a service on these GPUs is found, but for its keeper's pid."""
        name = (host_name(), str(self.worker[0]), self.run, digest(self.declared[service], place), ",".join(gpus))
        return self.folder / "~".join(name)


@dataclass(frozen=True)
class Kept:
    """A keeper with a door: in use, or waiting."""

    path: Path
    worker: int
    run: str
    digest: str
    gpus: frozenset[str]
    keeper: int


def digest(definition: Mapping[str, Any], place: Mapping[str, Any]) -> str:
    """Tells services apart that serve something else, or on other terms."""
    said = {key: value for key, value in definition.items() if key not in _TERMS}
    return sha256_of({"definition": said, "place": place})[:16]


def on_this_host(folder: Path) -> Iterator[Kept]:
    """Every keeper with a door."""
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        host, *fields = path.name.removesuffix(_SUFFIX).split("~")
        if host == host_name() and len(fields) == 5:
            worker, run, digest, gpus, keeper = fields
            yield Kept(path, int(worker), run, digest, frozenset(filter(None, gpus.split(","))), int(keeper))


def take(folder: Path, name: str) -> tuple[Line, dict[str, Any], int] | None:
    """A waiting service of this name: a line to its keeper, what that was told of it, and its pid. None: there is none.

    Whoever comes first has it.
    """
    for path in sorted(folder.glob(f"{name}~*{_SUFFIX}")):
        if (channel := knock(path)) is None:
            continue
        line = Line(channel)
        if line.send({"take": True}):
            for message in line.heard(_ANSWER_S):
                if "taken" in message:
                    return line, message["taken"], int(path.name.removesuffix(_SUFFIX).rpartition("~")[2])
        line.close()
    return None


def end(kept: Kept, grace_s: float = 0.0) -> None:
    """End one, in use or not. Returns once nothing of it is left."""
    channel = knock(kept.path)
    if channel is None:
        return
    line = Line(channel)
    line.send({"stop": grace_s})
    while not line.gone:
        if not select.select([line.channel], [], [], _PATIENCE_S + grace_s)[0]:
            trees.kill_tree(kept.keeper)
            break
        line.heard()
    line.close()
    if os.path.exists(kept.path):
        kept.path.unlink(missing_ok=True)
