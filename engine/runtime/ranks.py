"""The processes of one stage that runs in several: forked from its own, watched by it, and ended with it.

The stage's process is the first rank. It has the whole context, and reports for all; the others are forked from it
before any thread or device is in use, with torch and the stage's code imported already, and have the environment
that torchrun gives (RANK, WORLD_SIZE, MASTER_ADDR, …) for libraries that look there. A rank that fails says why, and
that becomes the stage's outcome: what the others then see, a lost connection, says nothing.

Of a stage of several nodes each has such a process, whose ranks it forks and watches. The first node's opens the
gate where they meet; the others' tell it how they fare, and end as soon as it does (`gate`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
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
from engine.runtime import autopsy, gate
from engine.runtime.address import announced, interface_of
from engine.runtime.context import Stopped
from engine.runtime.gate import Gate, Line, Passage
from engine.runtime.task import Task
from engine.runtime.trees import die_with
from engine.runtime.world import Group, Meeting, Place, World
from engine.store import members
from engine.store.processes import process_started
from engine.store.session import Database
from engine.store.stages import Outcome

log = get_logger(__name__)

PATIENCE_S = 10.0
"""From a rank's failure until the first one, which may wait for it in vain, is ended with that rank's account."""
GOODBYE_S = 120.0
"""How long the first rank, when it is through, waits for the others."""


class Ranks:
    """The other ranks and nodes, as the first rank of a node sees them."""

    def __init__(self, task: Task, meeting: Meeting, stop: threading.Event) -> None:
        self._task, self._meeting, self._stop = task, meeting, stop
        self._living: set[str] = set()
        """Those that have not ended: `rank 1`, and of the first node `node 1 (w2 on h2)`."""
        self._changed, self._ended = threading.Condition(), threading.Event()
        self._failure: Outcome | None = None
        self._silent = False
        """Whether the failure is that of a node that was killed, which explains what the others tell."""
        self._over = False
        self._world: Group | None = None
        self._line: Line | None = None

    @classmethod
    def start(cls, task: Task, follow: Callable[[World], None], stop: threading.Event) -> Ranks:
        """Fork the node's other ranks, each of which calls `follow` with its view of the world and ends.

        A `stop` that is set on another node than the first is handed on to it.
        """
        gang = task.claimed.gang
        connection = None if gang is None or gang.node == 0 else gate.reach(gang, gate.LINE)
        first = _first_place(task, connection)
        ranks = cls(task, Meeting.here(), stop)
        sys.stdout.flush()
        sys.stderr.flush()
        me, pipes = os.getpid(), []
        for local in range(1, first.on_node):
            ours, theirs = os.pipe()
            place = replace(first, local=local)
            pid = os.fork()
            if pid == 0:
                if connection is not None:
                    connection.close()
                _follow(place, task, ranks._meeting, me, theirs, follow)
            os.close(theirs)
            ranks._living.add(f"rank {place.rank}")
            pipes.append((pid, place.rank, ours))
        ranks._place = first
        if gang is not None and task.worker is not None:
            pid, started = task.worker
            gate.end_with(pid, lambda: process_started(pid) == started)
        for pid, rank, pipe in pipes:
            _in_thread(lambda pid=pid, rank=rank, pipe=pipe: ranks._watch(pid, rank, pipe), f"rank {rank}")  # type: ignore[misc]  # a lambda's defaults
        if connection is not None:
            ranks._join_line(Line(connection))
        return ranks

    _place: Place

    def join(self) -> World:
        """The first rank's view of the world, once all are there."""
        gang = self._task.claimed.gang
        if gang is not None and gang.node == 0:
            self._open_gate(gang)
        self._world = enter(self._place, self._task, self._meeting)
        return self._world

    def part(self) -> None:
        """Wait for the others to end. Raises RankFailed where one of them failed, or does not end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._living or self._failure is not None, GOODBYE_S)
            self._over = True
            late = sorted(self._living)
        if self._failure is not None:
            raise RankFailed(self._failure)
        if late:
            raise RankFailed(autopsy.failed(Cause.HANG, f"{late[0]} does not end after the first rank has"))
        if self._world is not None:
            self._world.leave()
        if self._line is not None:
            self._line.tell(done=True)

    def blame(self, own: Outcome) -> Outcome:
        """How the stage ended, whose first rank ended with `own`: another rank's failure explains it, if there is one.

        Waits a moment for that rank's account, which may be on its way.
        """
        self._ended.wait(2.0)
        with self._changed:
            self._over = True
            outcome = own if self._failure is None else self._failure
        if self._line is not None:
            self._line.tell(failed=outcome.as_data())
        return outcome

    def _watch(self, pid: int, rank: int, pipe: int) -> None:
        with open(pipe, "rb") as file:
            told = file.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._has_ended(f"rank {rank}", None if status == 0 else _outcome_of(f"rank {rank}", status, told))

    def _has_ended(self, who: str, failure: Outcome | None, *, silent: bool = False) -> None:
        """One of the others is no more; the first failure is the stage's, unless a death explains it."""
        with self._changed:
            self._living.discard(who)
            self._changed.notify_all()
            if failure is None or self._over or (self._failure is not None and not (silent and not self._silent)):
                return
            again = self._failure is not None
            self._failure, self._silent = failure, silent
            self._changed.notify_all()
        self._ended.set()
        log.warning("a rank failed", extra={"who": who, "error": failure.error})
        if self._line is not None:
            self._line.tell(failed=failure.as_data())
        if again:
            return
        time.sleep(PATIENCE_S)
        with self._changed:
            if not self._over:
                self._task.write_outcome(self._failure)
                os.kill(os.getpid(), signal.SIGKILL)  # it waits for a rank that is gone: nothing else ends that

    def _open_gate(self, gang: members.Gang) -> None:
        """As the first node: let the others in, and tell them where."""
        self._living.update(map(gang.name, range(1, len(gang.nodes))))
        opened = Gate(gang, announced(self._task.settings, gang), (self._meeting.host, self._meeting.port), self._hear)
        opened.open()
        db = Database(self._task.settings.database_url)
        try:
            with db.write() as session:
                members.open_at(session, self._task.claimed.attempt_id, opened.address, opened.port)
        finally:
            db.close()

    def _hear(self, node: int, line: Line) -> None:
        """What one node tells the first, to the end of its line."""
        gang = self._task.claimed.gang
        assert gang is not None, "who has no nodes hears none"
        who, over, outcome = gang.name(node), False, None
        for word in line.words():
            if word.get("stop"):
                self._stop.set()
            over = over or bool(word.get("done"))
            if "failed" in word and outcome is None:
                outcome = _of_other(who, Outcome.from_data(word["failed"]))
                self._has_ended_meanwhile(who, outcome)
        if not over and outcome is None:
            lost = autopsy.failed(Cause.LOST, f"{who} is gone: its processes, its worker or its host were killed")
            self._has_ended(who, lost, silent=True)
        elif outcome is None:
            self._has_ended(who, None)

    def _has_ended_meanwhile(self, who: str, outcome: Outcome) -> None:
        _in_thread(lambda: self._has_ended(who, outcome), who)

    def _join_line(self, line: Line) -> None:
        """As another node than the first: end with it, and hand on to it what our worker asks for."""
        self._line = line

        def listen() -> None:
            for _ in line.words():
                pass
            with self._changed:
                if self._over:
                    return
            gang = self._task.claimed.gang
            print(f"{'' if gang is None else gang.name(0)} is gone: this node ends with it", flush=True)  # noqa: T201 - this is its log
            os.kill(os.getpid(), signal.SIGKILL)

        def hand_on() -> None:
            self._stop.wait()
            line.tell(stop=True)

        _in_thread(listen, "line")
        _in_thread(hand_on, "stop")
        gang, listener = self._task.claimed.gang, self._meeting.listener
        assert gang is not None, "who has a line is a node"
        assert listener is not None, "a meeting here has a listener"
        Passage(gang, listener).open()


class RankFailed(Exception):
    """Another rank failed; `outcome` is how it tells it."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


def enter(place: Place, task: Task, meeting: Meeting) -> Group:
    """Take one's place among the ranks: a share of the threads, a GPU of one's own."""
    import torch

    # torch tells with every exchange of shards that its own wrappers call what it is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    resources = task.claimed.resources
    torch.set_num_threads(max(1, torch.get_num_threads() // place.on_node))
    if task.gpus:
        torch.cuda.set_device(place.local)
    patience_s = max(1800.0, resources.stall_timeout_s or 0.0)
    return Group(place, meeting, gpus=bool(task.gpus), patience_s=patience_s)


def _first_place(task: Task, connection: socket.socket | None) -> Place:
    """That of the first rank of this node."""
    on_node, gang = task.claimed.resources.node_ranks, task.claimed.gang
    if gang is None:
        return Place(0, on_node)
    address = announced(task.settings, gang) if connection is None else str(connection.getsockname()[0])
    chosen = os.environ.get("GLOO_SOCKET_IFNAME")
    return Place(0, on_node, gang.node, len(gang.nodes), chosen or interface_of(address))


def _follow(
    place: Place, task: Task, meeting: Meeting, first: int, pipe: int, follow: Callable[[World], None]
) -> NoReturn:
    """Be another rank, to the end."""
    code = 1
    try:
        die_with(first)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first rank hears it, and tells when to stop
        if meeting.listener is not None:
            os.close(meeting.listener)
        world = enter(place, task, meeting)
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


def _outcome_of(who: str, status: int, told: bytes) -> Outcome:
    """A failed rank's account of itself, or what its exit status says."""
    outcome = Outcome.from_data(json.loads(told)) if told else autopsy.of_status(status, out_of_memory=False)
    return _of_other(who, outcome)


def _of_other(who: str, outcome: Outcome) -> Outcome:
    if outcome.kind != "failed":  # ended by a SIGTERM of somebody else's
        outcome = autopsy.failed(Cause.LOST, "the stage's process was ended by SIGTERM")
    return replace(outcome, error=f"{who}: {outcome.error}")


def _in_thread(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()
