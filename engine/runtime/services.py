"""The services of one stage: started beside it, all at once, before its code begins; watched, and stopped with it.
An endpoint that somebody else runs is asked whether it answers, and no more (`hosted`).

Each has a keeper (`keeper`), a process that ends it with all its children as soon as we hang up, whatever became of
us. Here is what to do about it: wait until it is healthy, start it once more where it dies, and fail the stage
where it dies again. How a kind is started is told by `service_kinds`.
"""

from __future__ import annotations

import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import Any, Protocol

from engine.errors import ServiceDown
from engine.log import get_logger
from engine.runtime import ports
from engine.runtime.context import Address, Stopped
from engine.runtime.hosted import Hosted
from engine.runtime.kept import Owner
from engine.runtime.service import Service, Spot
from engine.runtime.stopwatch import spent

log = get_logger(__name__)

LEAVE_S = 20.0
"""How long a stage whose service is down has to leave at a checkpoint, before it is interrupted."""
_TICK_S = 0.05
_LISTEN_S = 0.5


@dataclass(frozen=True)
class Around:
    """What services are told of the stage that needs them."""

    logs: Callable[[str], Path]
    """The log of a service, by its name."""
    gpus: tuple[str, ...] = ()
    """Those of all services together, in the order of the services."""
    alive: Callable[[], None] = lambda: None
    """Called again and again while they start: the stage does not stand still."""
    free_port: Callable[[], int] = ports.free_port
    owner: Owner | None = None
    """Among whose stages services may be handed on."""


@contextmanager
def running(
    definitions: Mapping[str, Any], places: Mapping[str, Any], around: Around, stop: threading.Event
) -> Iterator[Mapping[str, Address]]:
    """Addresses of the services while they run.

    Where one is down for good `stop` is set, so that the stage leaves at a checkpoint, and ServiceDown is raised in
    the end, whatever the stage left with. Raises Stopped where the stage was to stop before they were up.
    """
    if not definitions:
        yield MappingProxyType({})
        return
    team = _Team(definitions, places, around, stop)
    try:
        team.start()
        with team.watched():
            try:
                yield MappingProxyType({service.name: service.address for service in team.services})
            except BaseException as error:
                if team.failure is not None and error is not team.failure:
                    raise team.failure from error
                raise
            if team.failure is not None:
                raise team.failure
        team.hand_over()
    finally:
        team.end()


class _Beside(Protocol):
    """What a stage waits for before it begins."""

    name: str
    healthy: bool

    @property
    def address(self) -> Address: ...

    def start(self) -> None: ...

    def look(self, timeout_s: float = 0.0) -> None: ...


class _Team:
    """All services of a stage."""

    def __init__(
        self, definitions: Mapping[str, Any], places: Mapping[str, Any], around: Around, stop: threading.Event
    ) -> None:
        self.services: list[_Beside] = []
        self._started: list[Service] = []
        self.failure: ServiceDown | None = None
        self._stop, self._alive = stop, around.alive
        self._over = threading.Event()
        left = around.gpus
        for name, definition in definitions.items():
            if definition["kind"] == "endpoint":
                self.services.append(Hosted(name, definition, around.logs(name), self._over))
                continue
            gpus, left = left[: definition["gpus"]], left[definition["gpus"] :]
            spot = Spot(around.logs(name), gpus, secrets.token_urlsafe(32), around.free_port, around.owner)
            self._started.append(Service(name, definition, places.get(name, {}), spot))
            self.services.append(self._started[-1])

    def start(self) -> None:
        """Start all, and wait until all are healthy. Raises ServiceDown, or Stopped."""
        begun = time.monotonic()
        with spent("waiting"):
            for service in self.services:
                service.start()
            while waiting := [service for service in self.services if not service.healthy]:
                if self._stop.is_set():
                    raise Stopped
                for service in waiting:
                    service.look()
                self._alive()
                self._over.wait(_TICK_S)
        names = ", ".join(service.name for service in self.services)
        log.info("services are up", extra={"services": names, "seconds": round(time.monotonic() - begun, 1)})

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the stage works: a thread that hears of deaths; what it cannot mend, it has the stage leave for."""
        if not self._started:
            yield
            return
        before = signal.signal(signal.SIGUSR2, self._interrupt)
        watcher = threading.Thread(target=self._watch, args=(threading.get_ident(),), name="services", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            signal.signal(signal.SIGUSR2, before)
            watcher.join()

    def hand_over(self) -> None:
        """Leave those that may be kept to the next stage."""
        for service in self._started:
            service.hand_over()

    def end(self) -> None:
        """Stop all, side by side. Returns once nothing of them is left."""
        self._over.set()
        for service in self._started:
            service.ask_to_stop()
        for service in self._started:
            service.wait_until_gone()

    def _watch(self, stage: int) -> None:
        while not self._over.is_set():
            for service in self._started:
                try:
                    service.look(_LISTEN_S / len(self._started) if service.healthy else _TICK_S)
                except ServiceDown as error:
                    self.failure = error
                    log.error("a service is down, the stage leaves", extra={"service": service.name})
                    self._see_it_leave(stage)
                    return

    def _see_it_leave(self, stage: int) -> None:
        self._stop.set()
        while not self._over.wait(LEAVE_S):
            with suppress(ProcessLookupError):
                signal.pthread_kill(stage, signal.SIGUSR2)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """In the stage's own thread, whatever it waits for."""
        if self.failure is not None and not self._over.is_set():
            raise self.failure
