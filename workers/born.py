"""A stage's process, from the fork to its end: its own session and log, then the stage.

The process of a light stage may go on with another one, which its nursery hands down the line: forking it and
ending it cost several times what such a stage does. Only where the one before succeeded and left no trace (`Traces`).
Which stages follow each other in a process is for the worker to say; it takes those of one run.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engine.runtime import trees
from workers import wire

MARK = trees.MARK

_MOST = 100
"""Stages in one process: what leaks a little in each does not grow for ever."""
_DESCRIPTORS = 1024
"""More than a nursery has open: a socket for each light child."""
_EACH_ITS_OWN = frozenset({MARK, "CUDA_VISIBLE_DEVICES"})
"""What is set anew for every stage."""


@dataclass(frozen=True)
class Traces:
    """What a stage could leave in its process, where another one would stumble over it."""

    threads: int
    children: frozenset[int] | None
    descriptors: int
    folder: str
    environment: Mapping[str, str]
    path: tuple[str, ...]
    timers: tuple[float, ...]
    torch: bool

    @classmethod
    def now(cls) -> Traces:
        children = trees.own_children()
        return cls(
            threads=len(os.listdir("/proc/self/task")),
            children=None if children is None else frozenset(children),
            descriptors=len(os.listdir("/proc/self/fd")),
            folder=os.getcwd(),
            environment={name: value for name, value in os.environ.items() if name not in _EACH_ITS_OWN},
            path=tuple(sys.path),
            timers=(*signal.getitimer(signal.ITIMER_REAL), *signal.getitimer(signal.ITIMER_PROF)),
            torch="torch" in sys.modules,
        )


def live(request: Mapping[str, Any], nursery: int, line: socket.socket | None) -> NoReturn:
    """Carry out the request, and with a `line` to the nursery what comes down it afterwards."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        trees.die_with(nursery)
        line = _close_all_but(line)
        code = _carry_out(request, line)
    except BaseException:  # noqa: BLE001 - the process ends here, and its log says why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _carry_out(request: Mapping[str, Any], line: socket.socket | None) -> int:
    """One stage after the other, as long as they leave no trace; the exit code."""
    from workers import stage_process

    before, carried_out = None, 0
    while True:
        _open_log(request["log"])
        os.environ[MARK] = request["spawn"]
        if line is not None and before is None:
            before = Traces.now()
        code = stage_process.main(Path(request["task"]))
        carried_out += 1
        if line is None or code != 0 or carried_out == _MOST or Traces.now() != before:
            return code
        sys.stdout.flush()
        sys.stderr.flush()
        wire.send(line, {"done": request["spawn"]})
        following = wire.receive(line)
        if following is None:
            return code
        request = following


def _close_all_but(line: socket.socket | None) -> socket.socket | None:
    """Close what was the nursery's; the line stands at 3 afterwards."""
    if line is None:
        os.closerange(3, _DESCRIPTORS)
        return None
    descriptor = line.detach()
    if descriptor != 3:
        os.dup2(descriptor, 3, inheritable=False)
    os.closerange(4, _DESCRIPTORS)
    return socket.socket(fileno=3)


def _open_log(path: str) -> None:
    """Send everything that this process prints to its log, which its supervisor has begun."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
