"""The worker's side of its nursery: asks it for stage processes, and hears how they end.

The nursery is a process of its own, because it imports torch and the worker must not; light stages, which do without,
have another. One that dies takes its children with it; the next stage gets a new one. One whose worker died keeps them
for a while: `adopt` makes them ours.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from engine.errors import RlxError
from engine.log import get_logger
from engine.runtime import trees
from engine.runtime.door import knock
from engine.store.processes import process_started
from workers import wire

log = get_logger(__name__)

_ROOT = Path(__file__).resolve().parents[1]

ALONE_S = 6.0
"""How long stage processes go on without a worker before they are asked to stop at a checkpoint."""
GRACE_S = 6.0
"""From then until they are killed. Both, and the heartbeat before the worker's death, are less than a lease: when
another worker takes a stage up, nothing of this one holds its GPUs any more."""
REST_S = 1.0
"""How long the process of a light stage waits for another one."""
_MOST_RESTING = 64
"""Processes that we remember as resting."""


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
        self.rests: str | None = None
        """What the nursery calls the process by that is there for another stage now; set before `wait` returns."""
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

    def _end(self, status: int, refused: str | None = None, rests: str | None = None) -> None:
        self._status, self.refused, self.rests = status, refused, rests
        self._ended.set()
        self._born.set()


class Nursery:
    """One nursery as its worker sees it: a channel, and the children that it has borne."""

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self.channel, self.process = channel, process
        """No process: an adopted one, which is not our child."""
        self.children: dict[str, Child] = {}
        self.gone = False

    def listen(self) -> None:
        """Hear of births and deaths until the nursery is gone."""
        while (message := wire.receive(self.channel)) is not None:
            match message:
                case {"spawned": name, "pid": pid}:
                    self.children[name]._be_born(pid)
                case {"exited": name, "status": status}:
                    self.children.pop(name)._end(status, rests=message.get("rests"))
                case {"refused": name, "error": error}:
                    self.children.pop(name)._end(0, refused=error)
        self.gone = True
        code = None if self.process is None else self.process.wait()
        orphans, self.children = self.children, {}
        if orphans:
            log.error("the nursery has died with its stages", extra={"status": code, "stages": len(orphans)})
        for child in orphans.values():
            child._end(-signal.SIGKILL, refused=f"the nursery ended with status {code}" if child.pid is None else None)
        self.channel.close()

    def close(self) -> None:
        """End every child, and with them the nursery."""
        for child in list(self.children.values()):
            child.kill()
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_RDWR)
        if self.process is not None:
            self.process.kill()  # it may be busy importing; what it has borne dies with it
            self.process.wait()


class Children:
    """Stage processes on demand, and those of dead predecessors that listen in `folder`. Thread-safe.

    Should we die, ours go on for `alone_s`, are then asked to stop, and killed `grace_s` later. The process of a light
    stage waits `rest_s` for another one of its run.
    """

    def __init__(
        self, folder: Path, *, alone_s: float = ALONE_S, grace_s: float = GRACE_S, rest_s: float = REST_S
    ) -> None:
        self._folder, self._patience = folder, (str(alone_s), str(grace_s), str(rest_s))
        self._lock = threading.Lock()
        self._own: dict[str, Nursery] = {}
        self._adopted: list[Nursery] = []
        self._resting: deque[tuple[UUID, str]] = deque(maxlen=_MOST_RESTING)

    def warm_up(self) -> None:
        """Start the nursery of most stages, so that it imports while we do other things."""
        with self._lock:
            self._nursery(wire.FULL)

    @property
    def nursery_pid(self) -> int | None:
        """The process of our nursery of most stages, None before it was needed."""
        nursery = self._own.get(wire.FULL)
        return None if nursery is None or nursery.process is None else nursery.process.pid

    def spawn(self, name: str, task: Path, log_path: Path, *, run_id: UUID, light: bool = False) -> Child:
        """Ask for a process for the task, for a `light` one without torch. Raises NoChild where nobody can be asked.

        A light one may get a process in which another light stage of its run has succeeded, and that was let go since.
        """
        child = Child()
        with self._lock:
            nursery = self._nursery(wire.LIGHT if light else wire.FULL)
            nursery.children[name] = child
            request = {"spawn": name, "task": str(task), "log": str(log_path), "rests": light}
            if light and (token := self._take_resting(run_id)) is not None:
                request["in"] = token
            try:
                wire.send(nursery.channel, request)
            except OSError as error:
                nursery.children.pop(name, None)
                raise NoChild(f"the nursery of stage processes is gone: {error}") from error
        return child

    def let_go(self, child: Child, run_id: UUID) -> None:
        """Nobody will speak to the child any more: end it with everything that it has started, or let another stage of
        the run have its process. Not sooner: a signal that was late would meet that one."""
        child.kill()
        if child.rests is not None:
            with self._lock:
                self._resting.append((run_id, child.rests))

    def _take_resting(self, run_id: UUID) -> str | None:
        for known in reversed(self._resting):  # the last one is the warmest
            if known[0] == run_id:
                self._resting.remove(known)
                return known[1]
        return None

    def adopt(self, worker_pid: int) -> dict[str, Child]:
        """Become the worker of the nurseries that a dead one on this host has left; name -> child of all theirs."""
        found: dict[str, Child] = {}
        for path in sorted(self._folder.glob(f"{worker_pid}-*.sock")):
            if (channel := knock(path)) is None or (told := wire.receive(channel)) is None:
                continue  # gone, or another worker's by now
            nursery = Nursery(channel)
            for name, pid in told["alive"]:
                nursery.children[name] = child = Child()
                child._be_born(pid)
                found[name] = child
            with self._lock:
                self._adopted.append(nursery)
            _in_background(nursery)
        return found

    def close(self) -> None:
        """End every nursery, and with it every stage process."""
        with self._lock:
            nurseries = [*self._adopted, *self._own.values()]
            self._own, self._adopted = {}, []
        for nursery in nurseries:
            nursery.close()

    def _nursery(self, kind: str) -> Nursery:
        """Our nursery of this kind, started where there is none."""
        if kind in self._own and not self._own[kind].gone:
            return self._own[kind]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "workers.nursery",
                    str(theirs.fileno()),
                    str(self._folder),
                    *self._patience,
                    kind,
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # One thread, and no CUDA context from merely asking whether there is a GPU: both would spoil the fork.
                # Sets of texts have one order in every worker: PEFT writes one into each adapter's config.
                env=python_environment(
                    OPENBLAS_NUM_THREADS="1",
                    TOKENIZERS_PARALLELISM="false",
                    PYTORCH_NVML_BASED_CUDA_CHECK="1",
                    PYTHONHASHSEED="0",
                ),
                start_new_session=True,  # Ctrl-C is for the worker
            )
        nursery = self._own[kind] = Nursery(ours, process)
        _in_background(nursery)
        return nursery


def _in_background(nursery: Nursery) -> None:
    threading.Thread(target=nursery.listen, name="nursery", daemon=True).start()


def python_environment(**more: str) -> dict[str, str]:
    """The environment for a Python of ours: it finds our packages first, and nothing in the working folder."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **{name: os.environ.get(name, value) for name, value in more.items()}}
