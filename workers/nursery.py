"""The warm parent of stage processes: it has imported torch, and forks one child per attempt in milliseconds.

Run as `python -m workers.nursery FD`. It has one thread and never touches CUDA, so that a fork of it is as
good as new. It ends when its worker does, however that ends, and takes every stage process with it. The
worker's side is `children`; what a child does is `stage_process`.
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
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workers import trees, wire

NEEDED = ("torch", "numpy.random", "workers.stage_process")
"""What every stage's process runs on."""

PRELOADED = (
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "engine.lm.hf",
    "engine.lm.learner",
    "engine.lm.warmup",
)
"""What most stages need, and would import each anew. `RLX_PRELOAD`, separated by commas, replaces the list."""

MARK = "RLX_ATTEMPT"
"""Environment variable that a stage's process hands on to whatever it starts."""


class Nursery:
    """The state of a running nursery: its worker's socket and its children."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: dict[int, str] = {}
        self._ends, wakes = os.pipe()
        os.set_blocking(self._ends, False)
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(self._ends, select.POLLIN)

    def serve(self) -> None:
        """Fork and report until the worker is gone; then end every child."""
        try:
            while True:
                ready = {fd for fd, _ in self._poll.poll()}
                if self._ends in ready:
                    os.read(self._ends, 4096)
                self._reap()
                if self._channel.fileno() in ready:
                    request = wire.receive(self._channel)
                    if request is None:
                        return
                    self._spawn(request)
        except BrokenPipeError:
            return  # the worker went while we reported
        finally:
            for pid in self._children:
                trees.kill_tree(pid)

    def _spawn(self, request: dict[str, Any]) -> None:
        gc.freeze()  # what is here already is nobody's garbage: collecting it in a child would copy its pages
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            wire.send(self._channel, {"refused": request["spawn"], "error": str(error)})
            return
        if pid == 0:
            _be_child(request, me)
        self._children[pid] = request["spawn"]
        wire.send(self._channel, {"spawned": request["spawn"], "pid": pid})

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
                wire.send(self._channel, {"exited": name, "status": os.waitstatus_to_exitcode(status)})

    def _end_family(self, leader: int, name: str) -> None:
        """End whom a stage left behind: in its session, and in sessions of their own, which are our children now.

        The latter carry the stage's mark, unless they wiped their environment; those without a mark are ended once
        no other stage is here that they could belong to.
        """
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
        _open_log(Path(request["log"]))
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


def _open_log(path: Path) -> None:
    """Send everything that this process prints to its log, a line at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _preloaded() -> Sequence[str]:
    chosen = os.environ.get("RLX_PRELOAD")
    return PRELOADED if chosen is None else [name for name in map(str.strip, chosen.split(",")) if name]


def main(descriptor: int) -> None:
    """Serve the worker at the other end of `descriptor`."""
    # Ctrl-C and `systemctl stop` reach every process of the worker; it alone decides what becomes of stages.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trees.adopt_orphans()
    with socket.socket(fileno=descriptor) as channel:
        channel.set_inheritable(False)
        for name in (*NEEDED, *_preloaded()):
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001 - left to the stage that asks for it, whose log will tell
                traceback.print_exc()
        Nursery(channel).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
