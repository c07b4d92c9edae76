"""The processes of one stage that runs in several: forked from its own, watched by it, and ended with it.

The stage's process is the first rank. It has the whole context, and reports for all; the others are forked from it
before any thread or device is in use, with torch and the stage's code imported already, and have the environment
that torchrun gives (RANK, WORLD_SIZE, MASTER_ADDR, …) for libraries that look there. A rank that fails says why, and
that becomes the stage's outcome: what the others then see, a lost connection, says nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn

from engine.errors import Cause
from engine.log import get_logger
from engine.runtime import autopsy
from engine.runtime.context import Stopped
from engine.runtime.task import Task
from engine.runtime.trees import die_with
from engine.runtime.world import Group, Meeting, World
from engine.store.stages import Outcome

log = get_logger(__name__)

PATIENCE_S = 10.0
"""From a rank's failure until the first one, which may wait for it in vain, is ended with that rank's account."""
GOODBYE_S = 120.0
"""How long the first rank, when it is through, waits for the others."""


class Ranks:
    """The other ranks, as the first one sees them."""

    def __init__(self, task: Task, meeting: Meeting) -> None:
        self._task, self._meeting = task, meeting
        self._living: dict[int, int] = {}
        """Pid → rank."""
        self._threads: list[threading.Thread] = []
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._failure: Outcome | None = None
        self._over = False
        self._world: Group | None = None

    @classmethod
    def start(cls, task: Task, follow: Callable[[World], None]) -> Ranks:
        """Fork the other ranks, each of which calls `follow` with its view of the world and ends."""
        size = task.claimed.resources.ranks
        ranks = cls(task, Meeting.here())
        sys.stdout.flush()
        sys.stderr.flush()
        me, pipes = os.getpid(), []
        for rank in range(1, size):
            ours, theirs = os.pipe()
            pid = os.fork()
            if pid == 0:
                _follow(rank, task, ranks._meeting, me, theirs, follow)
            os.close(theirs)
            ranks._living[pid] = rank
            pipes.append((pid, rank, ours))
        for pid, rank, pipe in pipes:
            thread = threading.Thread(target=ranks._watch, args=(pid, rank, pipe), name=f"rank {rank}", daemon=True)
            thread.start()
            ranks._threads.append(thread)
        return ranks

    def join(self) -> World:
        """The first rank's view of the world, once all are there."""
        self._world = enter(0, self._task, self._meeting)
        return self._world

    def part(self) -> None:
        """Wait for the others to end. Raises RankFailed where one of them failed, or does not end."""
        deadline = time.monotonic() + GOODBYE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            self._over = True
            late = sorted(self._living.values())
        if self._failure is not None:
            raise RankFailed(self._failure)
        if late:
            raise RankFailed(autopsy.failed(Cause.HANG, f"rank {late[0]} does not end after the first one has"))
        if self._world is not None:
            self._world.leave()

    def blame(self, own: Outcome) -> Outcome:
        """How the stage ended, whose first rank ended with `own`: another rank's failure explains it, if there is one.

        Waits a moment for that rank's account, which may be on its way.
        """
        self._ended.wait(2.0)
        with self._lock:
            self._over = True
            return own if self._failure is None else self._failure

    def _watch(self, pid: int, rank: int, pipe: int) -> None:
        with open(pipe, "rb") as file:
            told = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with self._lock:
            self._living.pop(pid, None)
            if status == 0 or self._over or self._failure is not None:
                return
            self._failure = _outcome_of(rank, status, told)
        self._ended.set()
        log.warning("a rank failed", extra={"rank": rank, "error": self._failure.error})
        time.sleep(PATIENCE_S)
        with self._lock:
            if not self._over:
                self._task.write_outcome(self._failure)
                os.kill(os.getpid(), signal.SIGKILL)  # it waits for a rank that is gone: nothing else ends that


class RankFailed(Exception):
    """Another rank failed; `outcome` is how it tells it."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


def enter(rank: int, task: Task, meeting: Meeting) -> Group:
    """Take one's place among the ranks: a share of the threads, a GPU of one's own."""
    import torch

    # torch tells with every exchange of shards that its own wrappers call what it is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    resources = task.claimed.resources
    torch.set_num_threads(max(1, torch.get_num_threads() // resources.ranks))
    if task.gpus:
        torch.cuda.set_device(rank)
    patience_s = max(1800.0, resources.stall_timeout_s or 0.0)
    return Group(rank, resources.ranks, meeting, gpus=bool(task.gpus), patience_s=patience_s)


def _follow(
    rank: int, task: Task, meeting: Meeting, first: int, pipe: int, follow: Callable[[World], None]
) -> NoReturn:
    """Be another rank, to the end."""
    code = 1
    try:
        die_with(first)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first rank hears it, and tells when to stop
        if meeting.listener is not None:
            os.close(meeting.listener)
        world = enter(rank, task, meeting)
        with suppress(Stopped):
            follow(world)
        world.leave()
        code = 0
    except BaseException as error:  # noqa: BLE001 - told to the first rank, and in the log
        traceback.print_exc()
        with open(pipe, "wb") as file:
            file.write(json.dumps(autopsy.of_exception(error).as_data()).encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _outcome_of(rank: int, status: int, told: bytes) -> Outcome:
    """A failed rank's account of itself, or what its exit status says."""
    outcome = Outcome.from_data(json.loads(told)) if told else autopsy.of_status(status, out_of_memory=False)
    if outcome.kind != "failed":  # ended by a SIGTERM of somebody else's
        outcome = autopsy.failed(Cause.LOST, "the stage's process was ended by SIGTERM")
    return replace(outcome, error=f"rank {rank}: {outcome.error}")
