"""The warm parent of stage processes: it has imported torch, and forks one child per attempt in milliseconds.

Run as `python -m workers.nursery FD FOLDER ALONE_S GRACE_S KIND`. A `light` one has not imported torch: so much less
memory to share makes its children many times cheaper. It has one thread and never touches CUDA, so that
a fork of it is as good as new. When its worker goes without a word, it keeps the stage processes for ALONE_S,
with a socket in FOLDER where the worker's successor finds it; when none comes, they are asked to stop, killed
GRACE_S later, and all is over before their leases are. The worker's side is `children`; what a child does is
`stage_process`.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine import log
from engine.runtime.seeds import seed_numpy
from engine.settings import read_settings
from engine.store.connection import make_engine
from workers import memory, trees, wire
from workers.door import Door

NEEDED = ("numpy.random", "workers.stage_process")
"""What every stage's process runs on."""

PRELOADED = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "engine.lm.hf",
    "engine.lm.learner",
    "engine.lm.warmup",
    "engine.methods.dialogue.prepare",
    "engine.methods.archer.stages",
    "engine.methods.ppo.stages",
    "engine.methods.reinforce.stages",
)
"""What most stages need, and would import each anew. `RLX_PRELOAD`, separated by commas, replaces the list."""

MARK = "RLX_ATTEMPT"
"""Environment variable that a stage's process hands on to whatever it starts."""

_TICK_S = 0.2
_IDLE_S = 1.0
"""Without work for so long, there is time to become cheaper to fork."""


class Nursery:
    """The state of a running nursery: its worker's socket, its children, and its patience while it has no worker."""

    def __init__(self, channel: socket.socket, folder: Path, alone_s: float, grace_s: float) -> None:
        self._channel: socket.socket | None = channel
        self._folder, self._worker = folder, os.getppid()
        self._door: Door | None = None
        self._children: dict[int, str] = {}
        self._collapsed = False
        self._alone_s, self._grace_s, self._alone_since = alone_s, grace_s, 0.0
        self._old = False
        self._ends, wakes = os.pipe()
        os.set_blocking(self._ends, False)
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Fork and report while our worker lives; once it has died, keep what we have borne for another; then end."""
        try:
            while self._children or not self._old:
                self._turn()
        finally:
            for pid in self._children:
                trees.kill_tree(pid)
            if self._door is not None:
                self._door.close()

    def _turn(self) -> None:
        door = None if self._door is None else self._door.socket
        ears: list[socket.socket | int] = [ear for ear in (self._channel, door) if ear is not None]
        ready, _, _ = select.select([*ears, self._ends], [], [], self._wait_s())
        if not ready and not self._children and not self._collapsed:
            self._collapsed = True
            memory.collapse()
        if self._ends in ready:
            os.read(self._ends, 4096)
        self._reap()
        if self._channel is None:
            self._lose_patience()
            if self._door is not None and door in ready:
                self._take_in(self._door)
        elif self._channel in ready:
            request = wire.receive(self._channel)
            if request is None:
                self._be_orphaned()
            else:
                self._spawn(request)

    def _wait_s(self) -> float | None:
        if self._channel is None:
            return _TICK_S
        return None if self._collapsed or self._children else _IDLE_S

    def _tell(self, message: dict[str, Any]) -> None:
        if self._channel is None:
            return
        try:
            wire.send(self._channel, message)
        except OSError:  # the worker went while we reported
            self._be_orphaned()

    def _be_orphaned(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel, self._alone_since, self._old = None, time.monotonic(), True
        if self._children:
            try:
                self._door = Door(self._folder / f"{self._worker}-{os.getpid()}.sock")
            except OSError:
                traceback.print_exc()  # nobody will find us: the stages end when our patience does

    def _take_in(self, door: Door) -> None:
        """A worker has come: tell it whom we have. From now on we are its."""
        self._channel, self._worker = door.answer()
        self._door = None
        self._tell({"alive": [[name, pid] for pid, name in self._children.items()]})

    def _lose_patience(self) -> None:
        alone_s = time.monotonic() - self._alone_since
        if alone_s > self._alone_s + self._grace_s:
            for pid in self._children:
                trees.kill_tree(pid)
        elif alone_s > self._alone_s:
            for pid in self._children:
                os.kill(pid, signal.SIGTERM)  # again and again: the first may come before the process listens

    def _spawn(self, request: dict[str, Any]) -> None:
        gc.freeze()  # what is here already is nobody's garbage: collecting it in a child would copy its pages
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"refused": request["spawn"], "error": str(error)})
            return
        if pid == 0:
            _be_child(request, me)
        self._children[pid] = request["spawn"]
        self._tell({"spawned": request["spawn"], "pid": pid})

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                name = self._children.pop(pid, None)
                if name is None:
                    continue  # an orphan of an earlier stage, ended at last
                self._end_family(pid, name)
                self._tell({"exited": name, "status": os.waitstatus_to_exitcode(status)})

    def _end_family(self, leader: int, name: str) -> None:
        """End whom a stage left behind: in its session, and in sessions of their own, which are our children now.

        The latter carry the stage's mark, unless they wiped their environment; those without a mark are ended once
        no other stage is here that they could belong to. Whoever lost a parent is below one of our own children: most
        often there is none but the stages themselves, and nobody to look for.
        """
        ours = trees.own_children()
        if ours is not None and ours <= self._children.keys():
            return
        entries = trees.table()
        if trees.members(leader, entries):
            trees.kill_tree(leader)
        for pid in trees.children(os.getpid(), entries) - set(self._children):
            mark = trees.marked(pid, MARK)
            if mark == name or (mark is None and not self._children):
                trees.kill_tree(pid)


def _be_child(request: dict[str, Any], nursery: int) -> None:
    """From the fork to the end of the stage's process. Never returns."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        trees.die_with(nursery)
        _open_log(request["log"])
        os.closerange(3, 256)
        os.environ[MARK] = request["spawn"]
        from workers import stage_process

        code = stage_process.main(Path(request["task"]))
    except BaseException:  # noqa: BLE001 - the process ends here, and its log says why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _open_log(path: str) -> None:
    """Send everything that this process prints to its log, which its supervisor has begun."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _know_the_database() -> None:
    """Import what speaks to it, which takes a tenth of a second with PostgreSQL; nothing is connected."""
    try:
        make_engine(read_settings().database_url)
    except Exception:  # noqa: BLE001 - as with every other import
        traceback.print_exc()


def _prepare_to_print() -> None:
    """As the children print: a line at a time, whatever it holds."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _preloaded() -> Sequence[str]:
    chosen = os.environ.get("RLX_PRELOAD")
    return PRELOADED if chosen is None else [name for name in map(str.strip, chosen.split(",")) if name]


def main(descriptor: int, folder: Path, alone_s: float, grace_s: float, kind: str) -> None:
    """Serve the worker at the other end of `descriptor`, and after its death whoever knocks at our door in `folder`."""
    # Ctrl-C and `systemctl stop` reach every process of the worker; it alone decides what becomes of stages.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trees.adopt_orphans()
    with socket.socket(fileno=descriptor) as channel:
        channel.set_inheritable(False)
        for name in (*NEEDED, *(() if kind == wire.LIGHT else _preloaded())):
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - left to the stage that asks for it, whose log will tell
                traceback.print_exc()
        _know_the_database()
        # For the children: what each would do anew costs each of them the copies of many pages.
        seed_numpy(0)
        log.configure()
        _prepare_to_print()
        Nursery(channel, folder, alone_s, grace_s).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
