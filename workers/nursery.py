"""The warm parent of stage processes: it has imported torch, and forks them in milliseconds.

Run as `python -m workers.nursery FD FOLDER ALONE_S GRACE_S REST_S KIND`. A `light` one has not imported torch: so
much less memory to share makes its children many times cheaper; and a child whose stage left nothing behind rests
for REST_S, for the worker to give it another stage. A nursery has one thread and never touches CUDA, so that a fork
of it is as good as new. When its worker goes without a word, it keeps the stage processes for ALONE_S, with a socket
in FOLDER where the worker's successor finds it; when none comes, they are asked to stop, killed GRACE_S later, and
all is over before their leases are. The worker's side is `children`; what a child does is `born`'s.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import log
from engine.runtime import trees
from engine.runtime.door import Door
from engine.runtime.keeper import KEEPER
from engine.runtime.seeds import seed_numpy
from engine.settings import read_settings
from engine.store.connection import make_engine
from workers import memory, wire
from workers.born import MARK, live

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

_TICK_S = 0.2
_IDLE_S = 1.0
"""Without work for so long, there is time to become cheaper to fork."""


@dataclass
class Born:
    """One child."""

    token: str
    """The attempt that it was born for: what it is called by as long as it lives."""
    name: str | None
    """The attempt that it works on; None while it rests."""
    line: socket.socket | None
    """To a child that may rest."""
    rests_since: float = 0.0


class Nursery:
    """The state of a running nursery: its worker's socket, its children, and its patience while it has no worker."""

    def __init__(self, channel: socket.socket, folder: Path, alone_s: float, grace_s: float, rest_s: float) -> None:
        self._channel: socket.socket | None = channel
        self._folder, self._worker = folder, os.getppid()
        self._door: Door | None = None
        self._children: dict[int, Born] = {}
        self._collapsed = False
        self._alone_s, self._grace_s, self._alone_since = alone_s, grace_s, 0.0
        self._rest_s = rest_s
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
        lines = [born.line for born in self._children.values()]
        ears: list[socket.socket | int] = [ear for ear in (self._channel, door, *lines) if ear is not None]
        ready, _, _ = select.select([*ears, self._ends], [], [], self._wait_s())
        if not ready and not self._children and not self._collapsed:
            self._collapsed = True
            memory.collapse()
        if self._ends in ready:
            os.read(self._ends, 4096)
        self._reap()
        for pid, born in self._children.items():
            if born.line in ready:
                self._hear(pid, born)
        self._wake_the_late()
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
        if self._channel is None or any(born.name is None for born in self._children.values()):
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
        if self._alive():
            try:
                self._door = Door(self._folder / f"{self._worker}-{os.getpid()}.sock")
            except OSError:
                traceback.print_exc()  # nobody will find us: the stages end when our patience does

    def _take_in(self, door: Door) -> None:
        """A worker has come: tell it whom we have. From now on we are its."""
        self._channel, self._worker = door.answer()
        self._door = None
        self._tell({"alive": [[born.name, pid] for pid, born in self._alive().items()]})

    def _alive(self) -> dict[int, Born]:
        """Those that work."""
        return {pid: born for pid, born in self._children.items() if born.name is not None}

    def _lose_patience(self) -> None:
        alone_s = time.monotonic() - self._alone_since
        if alone_s > self._alone_s + self._grace_s:
            for pid in self._children:
                trees.kill_tree(pid)
        elif alone_s > self._alone_s:
            for pid in self._children:
                os.kill(pid, signal.SIGTERM)  # again and again: the first may come before the process listens

    def _spawn(self, request: dict[str, Any]) -> None:
        """Have the process that the request names carry it out, where it still rests; else a new one."""
        token = request.get("in")
        for pid, born in self._children.items():
            if born.name is None and born.token == token and born.line is not None:
                try:
                    wire.send(born.line, request)
                except OSError:
                    break  # it has died; we are about to hear of it
                born.name = request["spawn"]
                self._tell({"spawned": born.name, "pid": pid})
                return
        self._bear(request)

    def _bear(self, request: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) if request["rests"] else (None, None)
        gc.freeze()  # what is here already is nobody's garbage: collecting it in a child would copy its pages
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"refused": request["spawn"], "error": str(error)})
            if ours is not None:
                ours.close()
            return
        finally:
            if theirs is not None and os.getpid() == me:
                theirs.close()
        if pid == 0:
            live(request, me, theirs)
        self._children[pid] = Born(request["spawn"], request["spawn"], ours)
        self._tell({"spawned": request["spawn"], "pid": pid})

    def _hear(self, pid: int, born: Born) -> None:
        """A child has carried out its stage, and left nothing behind in itself, or it has ended."""
        assert born.line is not None, "whoever is heard has one"
        if wire.receive(born.line) is None or born.name is None or not self._childless():
            born.line.close()
            born.line = None  # it ends, and is reaped with all that its stage has left
            return
        name, born.name, born.rests_since = born.name, None, time.monotonic()
        self._tell({"exited": name, "status": 0, "rests": born.token})

    def _wake_the_late(self) -> None:
        """Have those end that nobody has given a stage for a while."""
        now = time.monotonic()
        for born in self._children.values():
            late = now - born.rests_since > self._rest_s or self._channel is None
            if born.name is None and born.line is not None and late:
                born.line.close()
                born.line = None

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                born = self._children.pop(pid, None)
                if born is None:
                    continue  # an orphan of an earlier stage, ended at last
                if born.line is not None:
                    born.line.close()
                if born.name is None:
                    continue  # it rested
                self._end_family(pid, born.name)
                self._tell({"exited": born.name, "status": os.waitstatus_to_exitcode(status)})

    def _end_family(self, leader: int, name: str) -> None:
        """End whom a stage left behind: in its session, and in sessions of their own, which are our children now.

        The latter carry the stage's mark, unless they wiped their environment; those without a mark are ended once
        no other stage is here that they could belong to.
        """
        if self._childless():
            return
        entries = trees.table()
        if trees.members(leader, entries):
            trees.kill_tree(leader)
        for pid in trees.children(os.getpid(), entries) - set(self._children):
            mark = trees.marked(pid, MARK)
            keeper = trees.marked(pid, KEEPER)
            orphaned = keeper is not None and int(keeper) not in entries  # of a service whose keeper was killed
            if mark == name or orphaned or (mark is None and not self._alive()):
                trees.kill_tree(pid)

    def _childless(self) -> bool:
        """Whether no stage that ended has left anybody: who lost a parent is below one of our own children, and most
        often there is none but the stages' processes themselves."""
        ours = trees.own_children()
        return ours is not None and ours <= self._children.keys()


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


def main(descriptor: int, folder: Path, alone_s: float, grace_s: float, rest_s: float, kind: str) -> None:
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
        Nursery(channel, folder, alone_s, grace_s, rest_s).serve()


if __name__ == "__main__":
    alone, grace, rest = map(float, sys.argv[3:6])
    main(int(sys.argv[1]), Path(sys.argv[2]), alone, grace, rest, sys.argv[6])
