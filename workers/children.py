"""The worker's side of its nursery: asks it for stage processes, and hears how they end.

The nursery is a process of its own, because it imports torch and the worker must not. One that dies takes
its children with it; the next stage gets a new one.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from engine.errors import RlxError
from engine.log import get_logger
from engine.store.processes import process_started
from workers import trees, wire

log = get_logger(__name__)

_ROOT = Path(__file__).resolve().parents[1]


class NoChild(RlxError):
    """No process could be made for a stage: the machine is out of processes, or torch does not import here."""

    retryable = True


class Child:
    """One stage process. It has no pid until the nursery has borne it."""

    def __init__(self) -> None:
        self.pid: int | None = None
        self.started: float | None = None
        self.refused: str | None = None
        """Why there never was a process; set where `wait` returns at once and there is no pid."""
        self._status: int | None = None
        self._born, self._ended = threading.Event(), threading.Event()
        self._abandoned = False

    def wait_for_birth(self, timeout_s: float) -> bool:
        """Whether it has a pid, or never will, within `timeout_s`."""
        return self._born.wait(timeout_s)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit status, negative for the signal that ended it; None where it still runs after `timeout_s`."""
        return self._status if self._ended.wait(timeout_s) else None

    def signal(self, number: int) -> None:
        """Send the process a signal; nothing happens where it has ended, or is yet to be born."""
        if (pid := self._living()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End the process and everything that it has started; one that is yet to be born ends when it is."""
        self._abandoned = True
        if (pid := self._living()) is not None:
            trees.kill_tree(pid)

    def _living(self) -> int | None:
        """The pid while it is certainly this process's."""
        if self.pid is None or self._ended.is_set() or self.started is None:
            return None
        return self.pid if process_started(self.pid) == self.started else None

    def _be_born(self, pid: int) -> None:
        self.started, self.pid = process_started(pid), pid
        self._born.set()
        if self._abandoned:
            self.kill()

    def _end(self, status: int, refused: str | None = None) -> None:
        self._status, self.refused = status, refused
        self._ended.set()
        self._born.set()


class Children:
    """Stage processes on demand. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._nursery: subprocess.Popen[bytes] | None = None
        self._alive: dict[str, Child] = {}

    def warm_up(self) -> None:
        """Start the nursery, so that it imports while we do other things."""
        with self._lock:
            self._ensure_nursery()

    @property
    def nursery_pid(self) -> int | None:
        """The nursery's process, None before it was needed."""
        return None if self._nursery is None else self._nursery.pid

    def spawn(self, name: str, task: Path, log_path: Path) -> Child:
        """Ask for a process for the task. Raises NoChild where nobody can be asked."""
        child = Child()
        with self._lock:
            channel = self._ensure_nursery()
            self._alive[name] = child
            try:
                wire.send(channel, {"spawn": name, "task": str(task), "log": str(log_path)})
            except OSError as error:
                self._alive.pop(name, None)
                raise NoChild(f"the nursery of stage processes is gone: {error}") from error
        return child

    def close(self) -> None:
        """End the nursery, and with it every stage process."""
        with self._lock:
            channel, nursery = self._channel, self._nursery
            self._channel = None
        for child in list(self._alive.values()):
            child.kill()
        if channel is not None:
            with suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)
        if nursery is not None:
            nursery.kill()  # it may be busy importing; what it has borne dies with it
            nursery.wait()

    def _ensure_nursery(self) -> socket.socket:
        if self._channel is not None:
            return self._channel
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._nursery = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # One thread, and no CUDA context from merely asking whether there is a GPU: both would spoil the fork.
                env=python_environment(
                    OPENBLAS_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", PYTORCH_NVML_BASED_CUDA_CHECK="1"
                ),
                start_new_session=True,  # Ctrl-C is for the worker
            )
        self._channel = ours
        threading.Thread(target=self._listen, args=(ours, self._nursery), name="nursery", daemon=True).start()
        return ours

    def _listen(self, channel: socket.socket, nursery: subprocess.Popen[bytes]) -> None:
        while (message := wire.receive(channel)) is not None:
            match message:
                case {"spawned": name, "pid": pid}:
                    self._alive[name]._be_born(pid)
                case {"exited": name, "status": status}:
                    self._alive.pop(name)._end(status)
                case {"refused": name, "error": error}:
                    self._alive.pop(name)._end(0, refused=error)
        with self._lock:
            if self._channel is channel:
                self._channel = None
            orphans, self._alive = self._alive, {}
        code = nursery.wait()
        if orphans:
            log.error("the nursery has died with its stages", extra={"status": code, "stages": len(orphans)})
        for child in orphans.values():
            child._end(-signal.SIGKILL, refused=f"the nursery ended with status {code}" if child.pid is None else None)
        channel.close()


def python_environment(**more: str) -> dict[str, str]:
    """The environment for a Python of ours: it finds our packages first, and nothing in the working folder."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **{name: os.environ.get(name, value) for name, value in more.items()}}
