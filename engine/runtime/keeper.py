"""The process that owns one service: it starts it, tells how it ended, starts it again when told, and ends it.

Run as `python -m engine.runtime.keeper FD`, with a `Line` at FD to the stage's process. Whatever the service has
started stays below the keeper, in whatever session, so that ending it leaves nobody. Who hangs up without a word was
killed, and what was his ends at once. When to start again is for the stage to say (`services`).

One that may be kept has a door (`kept`) as long as it lives. Handed over, it waits for the next stage of its run to
come through it, and ends with its worker, when told to, or when nobody came in time.

stage -> keeper    {"start": [argv], "env": {…}, "folder": path, "log": path, "told": {…}, "door": path, "worker": […]}
                   {"again": true}   {"stop": seconds}   {"keep": seconds}
at the door        {"take": true}   {"stop": seconds}
keeper -> stage    {"started": pid}   {"refused": error}   {"ended": status}   {"kept": true}   {"taken": told}
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from engine.runtime import trees
from engine.runtime.door import Door
from engine.runtime.line import Line
from engine.store.processes import process_started

GRACE_S = 5.0
"""From the word to stop until it is killed, where nobody says otherwise."""
KEEPER = "RLX_KEEPER"
"""Environment variable by which everything that a service has started names its keeper."""
_TICK_S = 0.02
_WORD_S = 2.0
"""For the first word of who has come through the door."""


class Keeper:
    """Its service, and who uses it."""

    def __init__(self, line: Line) -> None:
        self._line: Line | None = line
        self._door: Door | None = None
        self._worker: int | None = None
        self._until: float | None = None
        """While nobody uses it: when to end."""
        self._order: dict[str, Any] = {}
        self._service: int | None = None
        self._grace_s: float | None = None
        """Set once it is to end: how long the service has."""
        self._ends, wakes = os.pipe()
        for end in (self._ends, wakes):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._be_asked)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        """Until nobody needs the service any more."""
        try:
            while self._grace_s is None:
                self._turn()
        finally:
            self._end(self._grace_s or 0.0)

    def _turn(self) -> None:
        line = None if self._line is None else self._line.channel
        door = None if self._door is None else self._door.socket
        worker = None if self._line is not None else self._worker
        left = None if self._until is None else max(0.0, self._until - time.monotonic())
        ready = self._wait(left, *(ear for ear in (line, door, worker) if ear is not None))
        if self._line is not None:
            for message in self._line.heard():
                self._obey(message)
            if self._line is not None and self._line.gone:
                self._grace_s = self._grace_s or 0.0
        elif self._service is None or worker in ready or left == 0.0:
            self._grace_s = 0.0 if worker in ready else GRACE_S
        if door in ready and self._door is not None:
            self._let_in(self._door)

    def _obey(self, message: dict[str, Any]) -> None:
        match message:
            case {"stop": seconds}:
                self._grace_s = float(seconds)
            case {"keep": seconds}:
                self._until = time.monotonic() + float(seconds)
                if self._line is not None:
                    self._line.send({"kept": True})
                    self._line.close()
                self._line = None
            case _:
                self._order |= message
                if "door" in message and self._door is None:
                    self._open(Path(f"{message['door']}~{os.getpid()}.kept"), message["worker"])
                self._start()

    def _open(self, path: Path, worker: list[Any]) -> None:
        """Be found by the next stage, as long as the worker lives."""
        pid, started = worker
        self._door = Door(path)
        with suppress(ProcessLookupError):
            self._worker = os.pidfd_open(pid)
        if self._worker is None or process_started(pid) != started:
            self._worker = os.open("/dev/null", os.O_RDONLY)  # is ready at once, as one that has died

    def _let_in(self, door: Door) -> None:
        channel, _ = door.socket.accept()
        guest = Line(channel)
        for message in guest.heard(_WORD_S):
            if "stop" in message:
                self._grace_s = float(message["stop"])
                self._guest = guest  # hears of our end
                return
            if "take" in message and self._line is None and self._service is not None:
                self._line, self._until = guest, None
                guest.send({"taken": self._order["told"]})
                return
        guest.close()

    def _wait(self, seconds: float | None, *others: int | socket.socket) -> list[Any]:
        """Who of these has something to say, at latest after so long; who has ended is reaped."""
        ready = select.select([self._ends, *others], [], [], seconds)[0]
        with suppress(BlockingIOError):
            os.read(self._ends, 4096)
        self._reap()
        return ready

    def _be_asked(self, *_: object) -> None:
        self._grace_s = GRACE_S

    def _start(self) -> None:
        trees.kill_below(os.getpid())  # of an earlier start, whose leader has ended
        order = self._order
        try:
            with open(order["log"], "ab") as log:
                process = subprocess.Popen(
                    order["start"],
                    env={**order["env"], KEEPER: str(os.getpid())},
                    cwd=order["folder"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=partial(trees.die_with, os.getpid()),  # safe: this process has one thread
                )
        except OSError as error:
            self._tell({"refused": str(error)})
            return
        process.returncode = 0  # it is ours to reap
        self._service = process.pid
        self._tell({"started": process.pid})

    def _tell(self, message: dict[str, Any]) -> None:
        if self._line is not None:
            self._line.send(message)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid == self._service:
                    self._service = None
                    trees.kill_below(os.getpid())
                    self._tell({"ended": os.waitstatus_to_exitcode(status)})

    def _end(self, grace_s: float) -> None:
        """Ask the service to end, and kill what is left of it after `grace_s`."""
        if self._service is not None and grace_s > 0:
            with suppress(ProcessLookupError):
                os.kill(self._service, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while self._service is not None and time.monotonic() < deadline:
                self._wait(_TICK_S)
        trees.kill_below(os.getpid())
        if self._door is not None:
            self._door.close()


def main(descriptor: int) -> None:
    """Keep the service that is asked for at the other end of `descriptor`."""
    trees.adopt_orphans()
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    Keeper(Line(channel)).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
