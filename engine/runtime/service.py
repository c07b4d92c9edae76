"""One service as its stage's process sees it: a keeper at the other end of a line, and whether it answers.

A small state machine that `look` moves on; nothing here has a thread of its own.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import ServiceDown
from engine.log import get_logger
from engine.runtime import kept, ports, trees
from engine.runtime.context import Address
from engine.runtime.keeper import GRACE_S
from engine.runtime.kept import Owner
from engine.runtime.line import Line
from engine.runtime.service_kinds import environment, launch
from engine.runtime.task import device_names, log_tail

log = get_logger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_PORTS = 3
"""So many ports are tried where another process is quicker."""
_ASK_S = 2.0
"""For one answer about its health."""
_EVERY_S = 0.1
_TAIL = 4 << 10
_PATIENCE_S = 10.0
"""Beyond the grace: for a keeper to see to the end of its service."""


@dataclass(frozen=True)
class Spot:
    """Where a service runs."""

    log: Path
    gpus: tuple[str, ...]
    key: str = field(repr=False)
    free_port: Callable[[], int] = ports.free_port
    owner: Owner | None = None


class Service:
    """See the module. `start`, then `look` until `healthy`, and from then on to hear of its death."""

    def __init__(self, name: str, definition: Mapping[str, Any], place: Mapping[str, Any], spot: Spot) -> None:
        self.name = name
        self.healthy = False
        self._definition, self._place, self._spot = definition, place, spot
        self._line: Line | None = None
        self._keeper = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._key, self._log = spot.key, spot.log
        self._ports_tried, self._restarted = 0, False
        self._asked_last = self._deadline = 0.0

    @property
    def address(self) -> Address:
        """Where and how clients reach it."""
        url = f"http://{ports.HOST}:{self._port}{self._launch.base}"
        return Address(url=url, key=self._key, model=self._launch.model)

    def start(self) -> None:
        """Take it over from an earlier stage, or have a keeper start it. Raises ServiceDown where that cannot be."""
        self._deadline = time.monotonic() + self._definition["start_timeout"]
        if (door := self._door) is not None and (taken := kept.take(door.parent, door.name)) is not None:
            self._line, told, self._keeper = taken
            self._port, self._key, self._log = told["port"], told["key"], Path(told["log"])
            self._launch = launch(self.name, self._definition, self._place, port=self._port, key=self._key)
            self._spot.log.write_text(f"it goes on from an earlier stage: see {self._log}\n", encoding="utf-8")
            log.info("a service is taken over from an earlier stage", extra={"service": self.name})
            return
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
            # One that may be kept is not to end with all that carries the mark of this attempt.
            mark = {} if self._door is None else {trees.MARK: "kept"}
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine.runtime.keeper", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, **mark},
                start_new_session=True,
            )
        self._line, self._keeper = Line(ours), self._process.pid
        self._begin()

    def look(self, timeout_s: float = 0.0) -> None:
        """Hear what its keeper says, for up to `timeout_s`, and until it is healthy ask it. Raises ServiceDown."""
        assert self._line is not None, "it was started"
        for message in self._line.heard(timeout_s):
            if "refused" in message:
                raise self._down(f"cannot be started: {message['refused']}")
            if "ended" in message:
                self._go_on_after(message["ended"])
        if self._line.gone:
            raise self._down("has lost its keeper, the process that started it, and ended with it")
        if self.healthy:
            return
        now = time.monotonic()
        if now - self._asked_last >= _EVERY_S:
            answer = self._ask()
            self._asked_last = time.monotonic()
            if answer == 200:
                self._settle()
            elif now > self._deadline:
                said = "does not answer" if answer is None else f"answers {answer}"
                allowed = self._definition["start_timeout"]
                raise self._down(
                    f"was not healthy within {allowed:g} s (`start_timeout`): {self._launch.health} {said}"
                )

    def hand_over(self) -> None:
        """Leave it to the next stage of the run that needs it, where it may be kept."""
        if self._door is None or self._line is None:
            return
        self._line.send({"keep": self._definition["keep"]})
        if any("kept" in message for message in self._line.heard(_PATIENCE_S)):
            self._line.close()
            self._line = self._process = None

    def ask_to_stop(self) -> None:
        """End it in good order; returns at once."""
        if self._line is not None:
            self._line.send({"stop": GRACE_S})

    def wait_until_gone(self) -> None:
        """Until it and all that it has started have ended."""
        if self._line is None:
            return
        deadline = time.monotonic() + GRACE_S + _PATIENCE_S
        while not self._line.gone and (left := deadline - time.monotonic()) > 0:
            self._line.heard(left)
        if not self._line.gone:
            log.warning("a service does not end and is killed", extra={"service": self.name})
            trees.kill_tree(self._keeper)
        if self._process is not None:
            self._process.wait()
        self._line.close()

    @property
    def _door(self) -> Path | None:
        """Where its keeper is found by later stages, but for the keeper's pid; None where it ends with this one."""
        owner = self._spot.owner
        if owner is None or self._definition.get("keep") is None:
            return None
        return owner.door(self.name, self._place, self._spot.gpus)

    def _begin(self) -> None:
        """At a port that is free."""
        self._port = self._spot.free_port()
        self._ports_tried += 1
        key, gpus = self._key, device_names(self._spot.gpus)
        self._launch = launch(self.name, self._definition, self._place, port=self._port, key=key)
        env = environment(self._definition, self._launch, port=self._port, key=key, gpus=gpus)
        owner, door = self._spot.owner, self._door
        if owner is not None and door is not None:
            env[trees.MARK] = "kept"
            kept_as = {"door": str(door), "worker": list(owner.worker)}
        else:
            kept_as = {}
        assert self._line is not None
        self._line.send(
            {
                "start": self._launch.argv,
                "env": env,
                "folder": self._launch.folder,
                "log": str(self._log),
                "told": {"port": self._port, "key": key, "log": str(self._log)},
                **kept_as,
            }
        )

    def _go_on_after(self, status: int) -> None:
        """It has ended by itself, with all that it had started."""
        told = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
        if not self.healthy and not self._restarted:
            if ports.taken(self._port) and self._ports_tried < _PORTS:
                log.warning("another process took the port first", extra={"service": self.name, "port": self._port})
                self._begin()
                return
            raise self._down(f"{told} before it was healthy")
        if self._restarted:
            raise self._down(f"{told}, after it had been started a second time")
        log.warning(
            "a service has died and is started again",
            extra={"service": self.name, "status": status, "log": str(self._log)},
        )
        self.healthy, self._restarted = False, True
        self._deadline = time.monotonic() + self._definition["start_timeout"]
        assert self._line is not None
        self._line.send({"again": True})

    def _settle(self) -> None:
        """Something at its port is healthy: is it ours?"""
        if not ports.is_anothers(self._port, trees.below(self._keeper)):
            self.healthy = True
        elif self._ports_tried < _PORTS and not self._restarted:
            log.warning("another process answers at the port", extra={"service": self.name, "port": self._port})
            self._begin()
        else:
            raise self._down(f"is not who answers at its port, {self._port}")

    def _ask(self) -> int | None:
        """The status with which it answers, None where it does not. The key is not shown: it may be another's port."""
        connection = http.client.HTTPConnection(ports.HOST, self._port, timeout=_ASK_S)
        try:
            connection.request("GET", self._launch.health)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            with suppress(OSError):
                connection.close()

    def _down(self, what: str) -> ServiceDown:
        tail = log_tail(self._log, _TAIL).replace(self._key, "…").strip()
        end = f"The end of its log, {self._log}:\n{tail}" if tail else f"Its log, {self._log}, is empty."
        return ServiceDown(f"service {self.name} {what}. {end}")
