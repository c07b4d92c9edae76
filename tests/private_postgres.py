"""A PostgreSQL server of a test's own, on its own port and data folder, to be stopped, killed and started again."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

USER = "postgres"


def _binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


def absent() -> str | None:
    """None where a server can be made here, else the reason."""
    return None if _binary("initdb") and _binary("pg_ctl") else "initdb and pg_ctl are not installed"


class PrivatePostgres:
    """Made and started by the constructor; `close` stops it and removes its data. Root lends it to user `postgres`."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rlx-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self._folder, USER, USER)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._run("initdb", "-D", str(self._data), "-U", USER, "-A", "trust", "--no-sync", "-E", "UTF8")
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Up; returns once it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off -c max_connections=60"
        log = str(self._folder / "log")
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-l", log, "-w", "-t", "120", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Down: `fast` as for an upgrade, `immediate` as if the power went."""
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "-t", "120", "stop")

    def close(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, name: str, *arguments: str) -> None:
        binary = _binary(name)
        assert binary is not None, f"{name} is not installed"
        lower = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"] if os.geteuid() == 0 else []
        done = subprocess.run(
            [*lower, binary, *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
