"""What a stage's process is given, and what it leaves, in two places of the attempt's own.

work/<attempt>.task  a page of the stopwatch (signs of life, and where the time goes); a line of JSON that says what to
                     run; written last, a line that says how it ended. A line that was not ended does not count.
work/<attempt>/      the stage's output, until it is moved into the artifact store

A node of an attempt that is not its first has work/<attempt>.node1.task, and no output.

One file, for a short stage's time is spent on making and removing files more than on anything else.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from engine.plan.stage import gpus_of
from engine.runtime import stopwatch
from engine.settings import Settings
from engine.store.processes import process_started
from engine.store.stages import Claimed, Outcome

_SUFFIX = ".task"


@dataclass(frozen=True)
class Task:
    """One attempt, where it keeps its things, and what it was lent."""

    claimed: Claimed
    settings: Settings
    gpus: tuple[str, ...] = ()
    """The stage's own."""
    threads: int | None = None
    """CPU threads; None for all that the machine has."""
    service_gpus: tuple[str, ...] = ()
    """Those of its services."""
    worker: tuple[int, float] | None = None
    """Pid and start time of the worker that began it."""

    @classmethod
    def lent(cls, claimed: Claimed, settings: Settings, gpus: tuple[str, ...], threads: int | None) -> Task:
        """An attempt that this process, its worker, lends these GPUs: its services get the last ones."""
        own = len(gpus) - gpus_of(claimed.config.get("services", {}))
        pid = os.getpid()
        worker = None if (started := process_started(pid)) is None else (pid, started)
        return cls(claimed, settings, gpus[:own], threads, gpus[own:], worker)

    @property
    def path(self) -> Path:
        """Where this task is written, after the page of its stopwatch."""
        path = places(self.settings, self.claimed.attempt_id)[0]
        return path.with_suffix(f".{self.member}{_SUFFIX}") if self.member else path

    @property
    def member(self) -> str:
        """`node1` and so on for an attempt's nodes but the first; else nothing."""
        gang = self.claimed.gang
        return f"node{gang.node}" if gang is not None and gang.node else ""

    @property
    def spawned_as(self) -> str:
        """What its process is called by its worker, and marked with."""
        return f"{self.claimed.attempt_id}.{self.member}" if self.member else str(self.claimed.attempt_id)

    @property
    def output_dir(self) -> Path:
        """Where the stage writes its output."""
        return places(self.settings, self.claimed.attempt_id)[1]

    @property
    def log(self) -> Path:
        """The attempt's log, opened before any user's code is imported."""
        member = f".{self.member}" if self.member else ""
        return self.settings.logs / self.claimed.handle / f"{self.claimed.name}-{self.claimed.number}{member}.log"

    def service_log(self, service: str) -> Path:
        """The log of a service that runs beside this attempt."""
        return self.log.with_suffix(f".{service}.log")

    @property
    def checkpoints(self) -> Path:
        """The stage's checkpoints, of all its attempts."""
        return self.settings.checkpoints / self.claimed.handle / shelf_name(self.claimed.name, self.claimed.stage_id)

    def write(self) -> None:
        """Begin the attempt's file. Raises OSError where the disk has no room for it."""
        data = {
            "claimed": self.claimed.as_data(),
            "settings": {
                "home": str(self.settings.home),
                "database_url": self.settings.database_url,
                "broker_url": self.settings.broker_url,
                "artifact_url": self.settings.artifact_url,
                "address": self.settings.address,
            },
            "gpus": list(self.gpus),
            "threads": self.threads,
            "service_gpus": list(self.service_gpus),
            "worker": self.worker,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".draft")
        # Written, not only made so long: a page without room behind it would be fatal to whoever writes on it.
        with draft.open("wb") as file:
            file.write(stopwatch.blank() + _line(data))
        os.replace(draft, self.path)

    @classmethod
    def read(cls, path: Path) -> Task:
        """The task at `path`. Raises FileNotFoundError where there is none."""
        data = json.loads(_lines(path)[0])
        settings = data["settings"]
        return cls(
            claimed=Claimed.from_data(data["claimed"]),
            settings=Settings(**{**settings, "home": Path(settings["home"])}),
            gpus=tuple(data["gpus"]),
            threads=data.get("threads"),
            service_gpus=tuple(data.get("service_gpus", ())),
            worker=None if data.get("worker") is None else tuple(data["worker"]),
        )

    def write_outcome(self, outcome: Outcome) -> None:
        """Say how the attempt ended. Raises FileNotFoundError where it was cleared: it is over, and stays so."""
        with self.path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(_line(outcome.as_data()))

    def read_outcome(self) -> Outcome | None:
        """How the attempt ended, by its own account; None where it left without one."""
        try:
            lines = _lines(self.path)
        except FileNotFoundError:
            return None
        return Outcome.from_data(json.loads(lines[1])) if len(lines) > 1 else None

    def clear(self) -> None:
        """Remove what is left of the attempt's own; what cannot be is left to `leftovers`."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self.member:
            return
        shutil.rmtree(self.output_dir, ignore_errors=True)


def places(settings: Settings, attempt: UUID) -> tuple[Path, Path]:
    """The file and the output folder of an attempt."""
    return settings.work / f"{attempt}{_SUFFIX}", settings.work / str(attempt)


def written(settings: Settings) -> Iterator[Path]:
    """The file of every attempt that is or was at work in this home."""
    return settings.work.glob(f"*{_SUFFIX}")


def shelf_name(stage: str, stage_id: UUID) -> str:
    """The folder of a stage's checkpoints, below its run's."""
    return f"{stage}-{stage_id.hex[:8]}"


def _line(data: Any) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _lines(path: Path) -> list[bytes]:
    """What was written after the stopwatch's page, but for a line that its writer did not live to end."""
    return path.read_bytes()[stopwatch.BYTES :].split(b"\n")[:-1]


def service_logs(log: str | Path | None) -> dict[str, Path]:
    """The logs of the services that ran beside the attempt with this log, by their names: those on this host."""
    if not log:
        return {}
    path = Path(log)
    found = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*{path.suffix}"))
    return {one.name[len(path.stem) + 1 : -len(path.suffix)]: one for one in found}


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
