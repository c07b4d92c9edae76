"""A worker, from its first breath to its last: what `rlx worker` and `python -m workers` run.

It registers, works on what is ready, and leaves when it is told to, or when the one run that it serves is
over. On SIGTERM or SIGINT its stages stop at a checkpoint and go back to the queue.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar
from uuid import UUID

from engine.clock import utc_now
from engine.errors import ExitCode, Unreachable
from engine.log import get_logger
from engine.runtime import left_behind
from engine.settings import Settings
from engine.store import events, queue, workers
from engine.store.processes import host_name, process_started
from engine.store.session import Database, open_database
from engine.store.tables import WorkerId
from engine.store.workers import Drain, WorkerStatus
from workers import kept
from workers.children import Children
from workers.crew import Crew
from workers.devices import Devices, gpus_here
from workers.housekeeping import Housekeeping
from workers.supervisor import Deps, Times
from workers.tracking import Mirrors
from workers.unfinished import finish_left

log = get_logger(__name__)

T = TypeVar("T")

PULSE_S = 1.0
GLANCE_S = 0.05
"""On a store of which a glance tells whether it has changed, so soon is anything new noticed, whoever announces it."""
HEARTBEAT_S = 4.0
FAREWELL_S = 0.5
"""How long the threads may take to end once no stage is left; what they would still do, another worker does."""


def run_worker(
    settings: Settings,
    *,
    slots: int | None = None,
    gpus: Sequence[int | str] | None = None,
    queues: Sequence[str] = ("default",),
    name: str | None = None,
    run_id: UUID | None = None,
    times: Times | None = None,
) -> int:
    """Work until told to stop; the exit code.

    With `run_id` the worker serves that run alone, whatever queues its stages are in, and leaves when it is over.
    """
    signals = Signals()
    children = Children(settings.sockets)
    children.warm_up()  # first of all: it takes longest
    try:
        db = open_database(settings)
        if run_id is not None:
            with db.read() as session:
                queues = queue.names(session, run_id)
        worker, devices = _register(db, name or host_name(), queues, slots, gpus, run_id)
        deps = Deps(settings, db, worker, children, devices.slots, times=times or Times())
        crew = Crew(deps, devices, queues, run_id, on_idle=signals.wake)
        try:
            _quietly(lambda: _take_over(deps))  # before any of it is tried again
            _quietly(crew.adopt)
            return _work(deps, crew, signals, queues, run_id)
        finally:
            _say_goodbye(db, worker)
            db.close()
    finally:
        children.close()


class Signals:
    """Requests to leave, and a way to wake the main thread: both come through one pipe, safe in a handler."""

    def __init__(self) -> None:
        self._ends, self._wakes = os.pipe()
        os.set_blocking(self._ends, False)
        os.set_blocking(self._wakes, False)
        self.count = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.count += 1
        self.wake()

    def wake(self) -> None:
        """Have `wait` return now. From any thread."""
        with suppress(BlockingIOError):  # it is awake already
            os.write(self._wakes, b"!")

    def wait(self, timeout_s: float) -> bool:
        """Whether woken before the time is up."""
        if select.select([self._ends], [], [], timeout_s)[0]:
            os.read(self._ends, 4096)
            return True
        return False


def _work(deps: Deps, crew: Crew, signals: Signals, queues: Sequence[str], run_id: UUID | None) -> int:
    _quietly(crew.look)  # before Celery is even imported
    from workers.app import make_app, send
    from workers.listener import Listener

    app = make_app(deps.settings)
    mirrors = Mirrors(deps.settings, deps.db, run_id)
    housekeeping = Housekeeping(
        deps.db,
        str(deps.worker),
        lambda message: send(app, str(message.stage_id), message.queue, message.priority),
        crew.look,
        lease_s=deps.times.lease_s,
        deliver=lambda: _take_over(deps),
        mirror=mirrors.look,
    )
    listener = Listener(app, queues, crew.look)
    housekeeping.start()
    listener.start()
    code = _pulse(deps, crew, signals, run_id)
    deps.draining.set()
    _quietly(crew.answer_calls)  # they hear at once that we leave
    asked = signals.count
    while not crew.join(PULSE_S):
        if signals.count > asked:
            log.warning("told once more to leave: leaving without waiting for checkpoints")
            break
        _quietly(lambda: _beat(deps, WorkerStatus.DRAINING))
    listener.stop(FAREWELL_S)
    housekeeping.stop(FAREWELL_S)
    if run_id is not None:
        _quietly(mirrors.look)  # a run of milliseconds; nobody else may come
    return code


def _take_over(deps: Deps) -> None:
    """What dead workers and dead attempts of this host did not get to the store."""
    finish_left(deps.settings, deps.db, deps.now)
    left_behind.deliver_all(deps.settings.spool, deps.db)


def _pulse(deps: Deps, crew: Crew, signals: Signals, run_id: UUID | None) -> int:
    """Until it is time to leave: give signs of life, and look for work that nobody announced to us. The exit code."""
    beaten, drain = time.monotonic(), Drain.NO
    glance = deps.db.watch()
    while not signals.count:
        _rest(signals, crew, glance)
        if time.monotonic() - beaten >= HEARTBEAT_S:
            beaten = time.monotonic()
            status = WorkerStatus.DRAINING if drain else WorkerStatus.ALIVE
            told = _quietly(partial(_beat, deps, status))
            if told and told is not drain:
                log.info("told to drain", extra={"how": told.value})
                drain = told
                crew.close()
            _quietly(lambda: kept.end_unneeded(deps.settings, deps.db))
        if drain is Drain.NOW or (drain is Drain.AFTER_CURRENT and not crew.size):
            return ExitCode.OK
        _quietly(crew.answer_calls)
        _quietly(crew.look)
        if run_id is not None and not crew.size:
            if _quietly(lambda: _over(deps.db, run_id)):
                log.info("the run is over, the worker that served it leaves")
                return ExitCode.OK
            if _quietly(lambda: _stuck(deps, crew)):
                return ExitCode.RUN_FAILED
    return ExitCode.OK


def _rest(signals: Signals, crew: Crew, glance: Callable[[], bool] | None) -> None:
    """Until the next pulse, or until there may be something to start."""
    until = time.monotonic() + PULSE_S
    while (left := until - time.monotonic()) > 0:
        if signals.wait(left if glance is None else min(GLANCE_S, left)):
            return
        if glance is not None and crew.has_room and glance():
            return


def _register(
    db: Database,
    name: str,
    queues: Sequence[str],
    slots: int | None,
    gpus: Sequence[int | str] | None,
    run_id: UUID | None,
) -> tuple[WorkerId, Devices]:
    """Enter the worker and what it lends; by default the GPUs here that no other worker lends. Raises Refused."""
    pid, here = os.getpid(), gpus_here()
    with db.write() as session:
        others = workers.lent_gpus(session, host_name(), utc_now())
        lent = [gpu for gpu in here if gpu not in others] if gpus is None else [str(gpu) for gpu in gpus]
        devices = Devices(slots or max(1, len(lent)), lent)
        worker = workers.register(
            session,
            name=name,
            host=host_name(),
            pid=pid,
            pid_started=process_started(pid),
            queues=queues,
            slots=devices.slots,
            gpus=devices.gpus,
            run_id=run_id,
            now=utc_now(),
        )
    if gpus is None and (left := [gpu for gpu in here if gpu in others]):
        log.warning("GPUs that another worker of this host lends are left to it", extra={"gpus": ",".join(left)})
    if unknown := [gpu for gpu in lent if gpu not in here]:
        log.warning("the NVIDIA driver shows no such GPU here; lent all the same", extra={"gpus": ",".join(unknown)})
    log.info("worker started", extra={"worker": name, "slots": devices.slots, "gpus": ",".join(lent) or "none"})
    return worker, devices


def _beat(deps: Deps, status: WorkerStatus) -> Drain:
    with deps.db.write() as session:
        return workers.heartbeat(session, deps.worker, now=deps.now(), status=status)


def _over(db: Database, run_id: UUID) -> bool:
    with db.read() as session:
        return queue.over(session, [run_id])


def _stuck(deps: Deps, crew: Crew) -> bool:
    """Whether the only run that we serve waits for more than we have; it is told so, and left to another worker."""
    stage = crew.misfit()
    if stage is None:
        return False
    message = (
        f"{stage.name} needs {stage.needs}, more than the worker started for this run lends ({crew.lends}): "
        "`rlx worker` on a machine that has them, or once no other worker here lends them, takes it up"
    )
    if stage.nodes > 1:
        message = (
            f"{stage.name} needs {stage.nodes} workers with {stage.needs} each at once, and this run has no more than "
            "the one that was started for it: as many `rlx worker`, on machines that have them, take it up"
        )
    log.error(message)
    with deps.db.write() as session:
        events.add(session, "run.stuck", message, now=deps.now(), run_id=stage.run_id, stage_id=stage.stage_id)
    return True


def _say_goodbye(db: Database, worker: WorkerId) -> None:
    def write() -> None:
        with db.write() as session:
            workers.mark_gone(session, worker)

    _quietly(write)
    log.info("worker left")


def _quietly(act: Callable[[], T]) -> T | None:
    """What the worker does all the time may fail while the database is away; the next time does it."""
    try:
        return act()
    except Unreachable as error:
        log.warning("the database is away", extra={"error": str(error)})
        return None
