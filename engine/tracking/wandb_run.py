"""Weights & Biases: one run a run, its series under `stage/key` over `stage/step`.

Offline, a mirror writes one folder with all of the run in it, and a later one writes it anew in its place: there is
never more than one to sync. Online, rows are numbered, and the server takes no number twice; a point that was replaced
is logged again, beside the earlier one, for a history only grows.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from engine.tracking.bridge import About, Left, Point
from engine.tracking.packages import required


class WandbRun:
    """Writes below `folder`, or to the server."""

    def __init__(
        self, folder: Path, project: str | None, entity: str | None, mode: Literal["offline", "online"]
    ) -> None:
        self._folder, self._project, self._entity, self._mode = folder, project, entity, mode
        self._run: Any = None
        self._rows = 0
        self._code = 0
        self._stages: set[str] = set()
        self._stale: list[Path] = []

    @property
    def where(self) -> str:
        """The folder to sync, or the page to look at."""
        return str(Path(self._run.settings.sync_dir)) if self._mode == "offline" else str(self._run.url)

    def open(self, about: About, left: Left | None) -> bool:
        """Begin the run, or go on with it: online only."""
        wandb = required("wandb")
        offline = self._mode == "offline"
        run_id = f"{about.handle}-{about.id[:8]}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stale = list(self._folder.glob(f"wandb/offline-run-*-{run_id}*")) if offline else []
        self._run = wandb.init(
            project=self._project or about.spec,
            entity=self._entity,
            id=run_id,
            name=about.handle,
            dir=str(self._folder),
            mode=self._mode,
            resume=None if offline else "allow",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,  # this process is not the one that trains
                x_disable_meta=True,
                x_save_requirements=False,
            ),
        )
        self._rows = 0 if offline or left is None else int(left["rows"])
        return not offline and left is not None

    def describe(self, about: About) -> None:
        """Config, tags, notes, and how the run stands."""
        self._run.config.update({**about.params, "rlx.status": about.status}, allow_val_change=True)
        self._run.tags = about.tags
        self._run.notes = about.notes
        self._code = 0 if about.status not in ("failed", "cancelled") else 1

    def write(self, points: Sequence[Point]) -> None:
        """A row for each step of a stage."""
        for stage, step, row in _rows(points):
            if stage not in self._stages:
                self._stages.add(stage)
                self._run.define_metric(f"{stage}/step", hidden=True)
                self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            time = max(point.time for point in row)
            values = {point.name: point.value for point in row}
            self._run.log({f"{stage}/step": step, "_timestamp": time, **values}, step=self._rows, commit=True)
            self._rows += 1

    def amend(self, points: Sequence[Point], since: float) -> bool:
        """Online, log what came since once more; offline, all is written anew."""
        if self._mode == "online":
            self.write([point for point in points if point.time > since])
        return self._mode == "online"

    def flush(self) -> Left | None:
        """The library writes when it likes: only the end is certain."""
        return None

    def close(self) -> Left:
        """Write what is left, and only then remove what this replaces."""
        self._run.finish(exit_code=self._code)
        required("wandb").teardown()  # its service still writes when `finish` is through
        for folder in self._stale:
            shutil.rmtree(folder, ignore_errors=True)
        self._stale = []
        return {"rows": self._rows}


def _rows(points: Sequence[Point]) -> Iterator[tuple[str, int, list[Point]]]:
    """Points by stage and step, stages in their order."""
    order = {stage: place for place, stage in enumerate(dict.fromkeys(point.stage for point in points))}

    def place(point: Point) -> tuple[int, int]:
        return order[point.stage], point.step

    for _, row in groupby(sorted(points, key=place), key=place):
        found = list(row)
        yield found[0].stage, found[0].step, found
