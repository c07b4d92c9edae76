"""The process that owns one service: it starts it, tells how it ended, starts it again when told, and ends it.

Run as `python -m engine.runtime.keeper FD`, with a `Line` at FD to the stage's process. Whatever the service has
started stays below the keeper, in whatever session, so that ending it leaves nobody. Who hangs up without a word was
killed, and what was his ends at once. When to start again is for the stage to say (`services`).

stage -> keeper   {"start": [argv], "env": {…}, "folder": path, "log": path}   {"again": true}   {"stop": seconds}
keeper -> stage   {"started": pid}   {"refused": error}   {"ended": status}
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
from typing import Any

from engine.runtime import trees
from engine.runtime.line import Line

GRACE_S = 5.0
"""From the word to stop until it is killed, where nobody says otherwise."""
_TICK_S = 0.02


class Keeper:
    """Its service, and who uses it."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._order: dict[str, Any] = {}
        self._service: int | None = None
        self._asked = False
        self._ends, wakes = os.pipe()
        for end in (self._ends, wakes):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._be_asked)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        """Until nobody needs the service any more, or it has ended and nobody wants it again."""
        grace_s = 0.0
        try:
            while not self._line.gone:
                self._wait(None, self._line.channel)
                if self._asked:
                    grace_s = GRACE_S
                    return
                for message in self._line.heard():
                    if "stop" in message:
                        grace_s = float(message["stop"])
                        return
                    self._order |= message
                    self._start()
        finally:
            self._end(grace_s)

    def _wait(self, seconds: float | None, *others: socket.socket) -> None:
        """Until something happens, or for so long; who has ended is reaped."""
        ears: list[int | socket.socket] = [self._ends, *others]
        select.select(ears, [], [], seconds)
        with suppress(BlockingIOError):
            os.read(self._ends, 4096)
        self._reap()

    def _be_asked(self, *_: object) -> None:
        self._asked = True

    def _start(self) -> None:
        trees.kill_below(os.getpid())  # of an earlier start, whose leader has ended
        order = self._order
        try:
            with open(order["log"], "ab") as log:
                process = subprocess.Popen(
                    order["start"],
                    env=order["env"],
                    cwd=order["folder"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=partial(trees.die_with, os.getpid()),  # safe: this process has one thread
                )
        except OSError as error:
            self._line.send({"refused": str(error)})
            return
        process.returncode = 0  # it is ours to reap
        self._service = process.pid
        self._line.send({"started": process.pid})

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if pid == self._service:
                    self._service = None
                    trees.kill_below(os.getpid())
                    self._line.send({"ended": os.waitstatus_to_exitcode(status)})

    def _end(self, grace_s: float) -> None:
        """Ask the service to end, and kill what is left of it after `grace_s`."""
        if self._service is not None and grace_s > 0:
            with suppress(ProcessLookupError):
                os.kill(self._service, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while self._service is not None and time.monotonic() < deadline:
                self._wait(_TICK_S)
        trees.kill_below(os.getpid())


def main(descriptor: int) -> None:
    """Keep the service that is asked for at the other end of `descriptor`."""
    trees.adopt_orphans()
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    Keeper(Line(channel)).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
