"""Where this installation keeps things, read once from the environment at the edge of the program.

Below the edge a `Settings` value is passed as an argument; nothing else reads the environment for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOME_NAME = ".rlx"


@dataclass(frozen=True)
class Settings:
    """One installation: its home folder, its database, its broker and its artifact store."""

    home: Path
    """`RLX_HOME`, or the nearest `.rlx` upwards from the working folder, or a new one in it."""
    database_url: str
    """`RLX_DATABASE_URL`; the default is SQLite in the home folder."""
    broker_url: str
    """`RLX_BROKER_URL`; the default is Celery's filesystem transport in the home folder."""
    artifact_url: str
    """`RLX_ARTIFACTS`, any fsspec URL; the default is a directory in the home folder."""
    address: str = ""
    """`RLX_ADDRESS`: where the other nodes of a stage reach this host; by default it is found out."""

    @property
    def embedded(self) -> bool:
        """True on the default without servers: `rlx submit` then starts a worker itself."""
        return self.broker_url.startswith("filesystem:")

    @property
    def logs(self) -> Path:
        """One folder a run, one file an attempt."""
        return self.home / "logs"

    @property
    def work(self) -> Path:
        """What running attempts have of their own."""
        return self.home / "work"

    @property
    def checkpoints(self) -> Path:
        """Resumable training states, one folder a stage."""
        return self.home / "checkpoints"

    @property
    def broker(self) -> Path:
        """The message folder of the filesystem transport."""
        return self.home / "broker"

    @property
    def spool(self) -> Path:
        """What could not yet be delivered to the database."""
        return self.home / "spool"

    @property
    def sockets(self) -> Path:
        """Where stage processes that lost their worker can be found by its successor."""
        return self.home / "run"

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a process that we start."""
        return {
            "RLX_HOME": str(self.home),
            "RLX_DATABASE_URL": self.database_url,
            "RLX_BROKER_URL": self.broker_url,
            "RLX_ARTIFACTS": self.artifact_url,
        } | ({"RLX_ADDRESS": self.address} if self.address else {})


def find_home(start: Path) -> Path:
    """The nearest `.rlx` folder at or above `start`, as git finds its own; else `start/.rlx`."""
    for folder in (start, *start.parents):
        if (folder / HOME_NAME).is_dir():
            return folder / HOME_NAME
    return start / HOME_NAME


def read_settings(environ: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Settings:
    """Settings from the environment; empty variables count as unset."""
    folder = Path.cwd() if cwd is None else cwd
    home = Path(environ["RLX_HOME"]).expanduser().resolve() if environ.get("RLX_HOME") else find_home(folder.resolve())
    return Settings(
        home=home,
        database_url=environ.get("RLX_DATABASE_URL") or f"sqlite:///{home / 'rlx.db'}",
        broker_url=environ.get("RLX_BROKER_URL") or "filesystem://",
        artifact_url=environ.get("RLX_ARTIFACTS") or str(home / "artifacts"),
        address=environ.get("RLX_ADDRESS", ""),
    )
