"""Private servers for tests and benchmarks: PostgreSQL, Redis and RabbitMQ with ports and folders of their own.

Each can be stopped, killed and started again on the same data, and is gone when its `with` block ends, however
it ends. The machine's own servers are never touched: nothing here connects to a default port.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import ClassVar, Self

from engine.runtime import trees

READY_WITHIN_S = 120.0
_OFFERED: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that was not offered before."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _OFFERED:
            _OFFERED.add(port)
            return port


class Server:
    """One server process and its folder.

    `inside` is put before its command, such as `nsenter` into another network; `host` is where it listens.
    """

    name: ClassVar[str]
    program: ClassVar[str]
    stops_on: ClassVar[int] = signal.SIGTERM

    def __init__(self, *, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        self.host, self.port = host, free_port()
        self._inside = list(inside)
        self.folder = Path(tempfile.mkdtemp(prefix=f"rlx-{self.name}-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def absent(cls) -> str | None:
        """Why there can be none here, or None."""
        if shutil.which("setpriv") is None:
            return "setpriv (util-linux) is not installed"
        return None if cls.binary() else f"{cls.program} is not installed"

    @classmethod
    def binary(cls) -> str | None:
        """The server's program."""
        return shutil.which(cls.program)

    @property
    def url(self) -> str:
        """Where clients reach it."""
        return self.url_at(self.host)

    def url_at(self, host: str) -> str:
        """Where clients reach it that know its host by another address."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """Its process while it lives."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start it, on the data that an earlier start left; returns once it answers."""
        assert self.pid is None, f"{self.name} runs already"
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._inside, "setpriv", "--pdeathsig", "KILL", *self._identity(), *self._command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=self.folder,
                start_new_session=True,
            )
        _until(self._answers, lambda: self.pid is not None, f"{self.name}: see {self.folder}/server.log")
        return self

    def stop(self) -> None:
        """End it in good order, without waiting for its clients."""
        if self._process is not None and self.pid is not None:
            self._process.send_signal(self.stops_on)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(30)
        self.kill()  # whoever is left

    def kill(self) -> None:
        """SIGKILL to it and to all its processes."""
        if self._process is not None:
            trees.kill_tree(self._process.pid)
            self._process.wait()

    def close(self) -> None:
        """Kill it and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _identity(self) -> list[str]:
        """Options of setpriv: who it runs as."""
        return []

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LC_ALL": "C"}

    def _answers(self) -> bool:
        raise NotImplementedError


class Postgres(Server):
    """PostgreSQL, run by a user of its own where we are root (it refuses to be root's)."""

    name = "postgres"
    program = "postgres"
    stops_on = signal.SIGINT  # a fast shutdown: clients are cut off

    @classmethod
    def binary(cls) -> str | None:
        found = shutil.which("initdb") or next(
            iter(sorted(glob("/usr/lib/postgresql/*/bin/initdb"), reverse=True)), None
        )
        return found and str(Path(os.path.realpath(found)).parent / "postgres")

    def url_at(self, host: str) -> str:
        return f"postgresql+psycopg://rlx@{host}:{self.port}/postgres"

    @property
    def socket_url(self) -> str:
        """The same through a file: it answers whatever network the client is in."""
        return f"postgresql+psycopg://rlx@/postgres?host={self.folder}&port={self.port}"

    def start(self) -> Self:
        if not (self.folder / "data").exists():
            user = self._user()
            if user is not None:
                os.chown(self.folder, user.pw_uid, user.pw_gid)
            initdb = str(Path(self.binary() or "").parent / "initdb")
            trust = ["--auth=trust", "--username=rlx", "--encoding=UTF8", "--locale=C", "--no-sync"]
            subprocess.run(
                ["setpriv", *self._identity(), initdb, *trust, "-D", str(self.folder / "data")],
                check=True,
                capture_output=True,
                env=self._environment(),
                cwd=self.folder,
            )
            with (self.folder / "data" / "pg_hba.conf").open("a") as file:
                file.write("host all all samenet trust\n")
        return super().start()

    def close(self) -> None:
        self.stop()  # killed, it would leave shared memory behind
        super().close()

    def _command(self) -> list[str]:
        where = ["-D", str(self.folder / "data"), "-p", str(self.port), "-k", str(self.folder)]
        return [str(self.binary()), *where, "-c", f"listen_addresses={self.host}", "-c", "max_connections=200"]

    def _identity(self) -> list[str]:
        user = self._user()
        return [] if user is None else [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]

    @staticmethod
    def _user() -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        names = {entry.pw_name for entry in pwd.getpwall()}
        return pwd.getpwnam("postgres" if "postgres" in names else "nobody")

    def _answers(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(host=str(self.folder), port=self.port, user="rlx", dbname="postgres"):
                return True
        except psycopg.OperationalError:
            return False


class Redis(Server):
    """Redis that keeps nothing on disk: a restart forgets every message."""

    name = "redis"
    program = "redis-server"

    def url_at(self, host: str) -> str:
        return f"redis://{host}:{self.port}/0"

    def _command(self) -> list[str]:
        where = ["--port", str(self.port), "--bind", self.host, "--dir", str(self.folder), "--protected-mode", "no"]
        file = self.folder / "redis.sock"
        return [str(self.binary()), *where, "--save", "", "--appendonly", "no", "--unixsocket", str(file)]

    def _answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(self.folder / "redis.sock"))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


class RabbitMQ(Server):
    """RabbitMQ with a node name, an Erlang port mapper and a cookie of its own. It takes seconds to start."""

    name = "rabbitmq"
    program = "rabbitmq-server"

    def __init__(self, *, host: str = "127.0.0.1", inside: Sequence[str] = ()) -> None:
        super().__init__(host=host, inside=inside)
        self._mapper_port, self._dist_port = free_port(), free_port()
        self._node = f"rlx{secrets.token_hex(4)}@localhost"

    @classmethod
    def binary(cls) -> str | None:
        # The one on the PATH may be a wrapper that changes to the machine's own folder and user.
        inner = sorted(glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"), reverse=True)
        return inner[0] if inner else shutil.which(cls.program)

    def url_at(self, host: str) -> str:
        return f"amqp://guest:guest@{host}:{self.port}//"

    def close(self) -> None:
        self.kill()
        # The mapper outlives its node, as a daemon of its own; this one is only ours.
        mapper = shutil.which("epmd") or next(iter(glob("/usr/lib/erlang/erts-*/bin/epmd")), None)
        if mapper is not None:
            subprocess.run([mapper, "-port", str(self._mapper_port), "-kill"], capture_output=True, check=False)
        super().close()

    def _command(self) -> list[str]:
        return [str(self.binary())]

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        (folder / "plugins").write_text("[].")
        (folder / "rabbitmq.conf").write_text("loopback_users = none\n")
        kept = {name: value for name, value in super()._environment().items() if not name.startswith("RABBITMQ_")}
        return kept | {
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=5) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(client.recv(8))
        except OSError:
            return False


def _until(done: Callable[[], bool], alive: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not done():
        if not alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not come up, {what}")
        time.sleep(0.05)
