"""What a stage's process is given, as one JSON file in the attempt's private directory, and what it leaves there.

work/<attempt>/task.json     what to run
work/<attempt>/pulse         signs of life, and where the time goes
work/<attempt>/output/       the stage's output, until it is moved into the artifact store
work/<attempt>/outcome.json  how it ended; written last, in one rename
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from engine.runtime import stopwatch
from engine.settings import Settings
from engine.store.stages import Claimed, Outcome


@dataclass(frozen=True)
class Task:
    """One attempt, where it keeps its things, and what it was lent."""

    claimed: Claimed
    settings: Settings
    gpus: tuple[str, ...] = ()
    threads: int | None = None
    """CPU threads; None for all that the machine has."""

    @property
    def work(self) -> Path:
        """Private to the attempt."""
        return self.settings.work / str(self.claimed.attempt_id)

    @property
    def path(self) -> Path:
        """Where this task is written."""
        return self.work / "task.json"

    @property
    def pulse(self) -> Path:
        """The page of the stage's stopwatch."""
        return self.work / "pulse"

    @property
    def output_dir(self) -> Path:
        """Where the stage writes its output."""
        return self.work / "output"

    @property
    def log(self) -> Path:
        """The attempt's log, opened before any user's code is imported."""
        return self.settings.logs / self.claimed.handle / f"{self.claimed.name}-{self.claimed.number}.log"

    @property
    def checkpoints(self) -> Path:
        """The stage's checkpoints, of all its attempts."""
        return self.settings.checkpoints / self.claimed.handle / shelf_name(self.claimed.name, self.claimed.stage_id)

    def write(self) -> None:
        """Make the private directory, with the task in it."""
        self.work.mkdir(parents=True)
        stopwatch.lay_out(self.pulse)
        data = {
            "claimed": self.claimed.as_data(),
            "settings": {
                "home": str(self.settings.home),
                "database_url": self.settings.database_url,
                "broker_url": self.settings.broker_url,
                "artifact_url": self.settings.artifact_url,
            },
            "gpus": list(self.gpus),
            "threads": self.threads,
        }
        _write_whole(self.path, data)

    @classmethod
    def read(cls, path: Path) -> Task:
        """The task at `path`."""
        data = json.loads(path.read_text(encoding="utf-8"))
        settings = data["settings"]
        return cls(
            claimed=Claimed.from_data(data["claimed"]),
            settings=Settings(**{**settings, "home": Path(settings["home"])}),
            gpus=tuple(data["gpus"]),
            threads=data.get("threads"),
        )

    def write_outcome(self, outcome: Outcome) -> None:
        """Say how the attempt ended."""
        _write_whole(self.work / "outcome.json", outcome.as_data())

    def read_outcome(self) -> Outcome | None:
        """How the attempt ended, by its own account; None where it left without one."""
        try:
            return Outcome.from_data(json.loads((self.work / "outcome.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


def shelf_name(stage: str, stage_id: UUID) -> str:
    """The folder of a stage's checkpoints, below its run's."""
    return f"{stage}-{stage_id.hex[:8]}"


def _write_whole(path: Path, data: Any) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(data), encoding="utf-8")
    os.replace(draft, path)


def log_tail(path: Path, size: int = 16 << 10) -> str:
    """The last `size` bytes of a log, from the start of a line; empty where there is no log."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size))
            text = file.read()
    except FileNotFoundError:
        return ""
    if length > size:
        text = text[text.find(b"\n") + 1 :]
    return text.decode("utf-8", "replace")


def device_names(gpus: Sequence[str]) -> str:
    """The value of CUDA_VISIBLE_DEVICES for these GPUs: exactly the lease, and nothing where nothing was lent."""
    return ",".join(gpus)
