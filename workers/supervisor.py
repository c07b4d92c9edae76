"""One attempt at a stage, from its claim to its recorded end, with no transaction open in between.

Whatever happens to the child comes back as an `Outcome`. The supervisor renews the attempt's lease, hands on
the wish to stop, and keeps the time; how a child is made is `children`', which stage comes next is `crew`'s.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeVar

from engine.clock import Clock, utc_now
from engine.errors import DiskError, StaleAttempt, Unreachable
from engine.log import get_logger
from engine.runtime import autopsy, left_behind
from engine.runtime.task import Task, log_tail
from engine.settings import Settings
from engine.store import queue, stages
from engine.store.processes import host_name
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome, Signal
from engine.store.tables import StageId, WorkerId
from workers import kept
from workers.children import Child, Children, NoChild
from workers.devices import gpu_ids, threads_of
from workers.vigil import Vigil

log = get_logger(__name__)

T = TypeVar("T")
AWAY = (Unreachable, DiskError)
"""A database that does not answer, or whose disk is full: both pass, and are no reason to end a stage."""
_LAST_WORDS = 4 << 10
"""Bytes of a log in which to look for why its process ended."""


@dataclass(frozen=True)
class Times:
    """How long things may take, in seconds."""

    poll_s: float = 0.25
    """Between two looks at whether the run should stop."""
    heartbeat_s: float = 2.0
    lease_s: float = 15.0
    grace_s: float = 30.0
    """From the word to stop until the process is killed: time to write a checkpoint. A run's own stop says its own."""
    birth_s: float = 600.0
    """Until the process is there: importing torch from a cold network disk takes minutes."""
    retry_s: float = 1.0
    """Between two tries to tell a database that is away."""


@dataclass(frozen=True)
class Deps:
    """What supervising needs of the worker."""

    settings: Settings
    db: Database
    worker: WorkerId
    children: Children
    slots: int = 1
    """How many it lends."""
    now: Clock = utc_now
    clock: Callable[[], float] = time.monotonic
    """Seconds, for the stage's limits: `hardware.timeout` and `hardware.stall_timeout`."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the worker has to go: its stages stop at a checkpoint, and go back to the queue."""
    times: Times = field(default_factory=Times)


class Reason(Enum):
    """Why a stage is asked to stop."""

    CANCELLED = "the run was cancelled"
    DRAINING = "the worker has to go"
    OUT_OF_TIME = "the stage's time is up"
    STALLED = "the stage shows no sign of life"


def supervise(stage_id: StageId, devices: Sequence[str], deps: Deps) -> bool:
    """Claim a stage, run it in a child, record the outcome if the attempt is still current. False: nothing to claim."""
    with deps.db.write() as session:
        claimed = stages.claim(
            session, stage_id, worker=deps.worker, devices=devices, now=deps.now(), lease_s=deps.times.lease_s
        )
    if claimed is None:  # announced twice, cancelled, or answered from the cache: all are normal
        return False
    task = Task.lent(claimed, deps.settings, gpu_ids(devices), threads_of(devices, deps.slots))
    _see_through(task, "stage started", lambda: _run_child(task, deps), deps)
    return True


def take_over(task: Task, child: Child, age_s: float, deps: Deps) -> None:
    """Supervise to its end an attempt of a dead predecessor, ours by now: `child`, begun `age_s` ago."""
    _see_through(task, "stage taken over", lambda: _run_child(task, deps, child, age_s), deps)


def _see_through(task: Task, beginning: str, run: Callable[[], Outcome], deps: Deps) -> None:
    """`run` the attempt, record its end and tidy up."""
    claimed = task.claimed
    fields = {"run": claimed.handle, "stage": claimed.name, "attempt": claimed.number}
    log.info(beginning, extra=fields)
    begun = time.monotonic()
    try:
        outcome = run()
        became = _finish(claimed, replace(outcome, log_tail=log_tail(task.log), log_path=str(task.log)), deps)
        log.info(
            "stage ended",
            extra=fields | {"how": outcome.kind, "became": str(became), "seconds": round(time.monotonic() - begun, 2)},
        )
    except StaleAttempt as error:
        log.warning("the attempt is stale, its end is not recorded", extra=fields | {"error": str(error)})
    finally:
        task.clear()
        with suppress(*AWAY):
            kept.end_unneeded(deps.settings, deps.db)


def _run_child(task: Task, deps: Deps, child: Child | None = None, age_s: float = 0.0) -> Outcome:
    """The attempt in a process of its own (a new one, or `child`) to its outcome. Raises StaleAttempt."""
    try:
        if child is None:
            open_log(task)
            kept.make_room(task)
            task.write()
            claimed = task.claimed
            child = deps.children.spawn(
                task.spawned_as, task.path, task.log, run_id=claimed.run_id, light=claimed.resources.light
            )
        return _attend(child, task, deps, age_s)
    except StaleAttempt:
        raise
    except Exception as error:
        log.exception("the stage could not be supervised", extra={"stage": task.claimed.name})
        tell_log(task, error)
        return autopsy.of_exception(error)
    finally:
        if child is not None:
            deps.children.let_go(child, task.claimed.run_id)


def _attend(child: Child, task: Task, deps: Deps, age_s: float) -> Outcome:
    """Watch the process to its end; how the attempt ended. Raises StaleAttempt."""
    memory_kills = autopsy.kills_for_memory()
    vigil = Vigil(task, deps.clock)
    reason = _watch(child, task, deps, vigil, age_s)
    status = child.wait(0)
    if status is None and reason is not None:
        return Outcome.stopped()  # before it was born
    if status is None or child.refused is not None:
        raise NoChild(f"no process could be made for the stage: {child.refused or 'the nursery does not answer'}")
    outcome = _outcome(task, status, reason, vigil, out_of_memory=autopsy.kills_for_memory() > memory_kills)
    return replace(outcome, spent=vigil.last_look(), pid=child.pid, pid_started=child.started)


def open_log(task: Task) -> None:
    """Begin the attempt's log, before any user code is imported."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    claimed = task.claimed
    line = f"{claimed.handle}: stage {claimed.name}, attempt {claimed.number}, {claimed.entry}, on {host_name()}"
    with task.log.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def tell_log(task: Task, error: BaseException) -> None:
    """A stage that never ran has a log that says why; on a full disk the store alone has it."""
    with suppress(OSError), task.log.open("a", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)


def _record_start(task: Task, child: Child, deps: Deps) -> bool:
    """Whether the attempt's process is known to the store by now."""
    if child.pid is None:
        return False
    try:
        with deps.db.write() as session:
            stages.start(session, task.claimed, pid=child.pid, pid_started=child.started, log_path=str(task.log))
    except AWAY:
        return False  # the heartbeat says so in the log
    return True


def _watch(child: Child, task: Task, deps: Deps, vigil: Vigil, age_s: float) -> Reason | None:
    """Until the process has ended: renew the lease, look whether to stop; why it was asked to, if it was."""
    claimed, times, begun = task.claimed, deps.times, deps.clock() - age_s
    spawned = beaten = time.monotonic()
    reason, asked, recorded = None, 0.0, False
    while True:
        if child.wait(times.poll_s) is not None:
            return reason
        if not recorded and child.wait_for_birth(0):  # what ends sooner is recorded with its end
            recorded = _record_start(task, child, deps)
        now = time.monotonic()
        if child.pid is None and now - spawned > times.birth_s:
            return None
        stalls = child.pid is not None and vigil.stalls()
        if reason is None and (reason := _reason(claimed, deps.clock() - begun, deps, stalls=stalls)) is not None:
            log.info("stopping the stage", extra={"stage": claimed.name, "reason": reason.value})
            if reason in (Reason.OUT_OF_TIME, Reason.STALLED) and child.pid is not None:
                vigil.take_stacks(child.pid)
            asked = time.monotonic()
        if reason is not None:
            if child.pid is None:
                child.kill()
                return reason
            if now - asked > (_grace(claimed, deps) if reason is Reason.CANCELLED else times.grace_s):
                log.warning("the stage did not stop in its time and is killed", extra={"stage": claimed.name})
                child.kill()
            child.signal(signal.SIGTERM)  # again and again: the first may come before the process listens
        if now - beaten >= times.heartbeat_s:
            beaten = now
            if _beat(claimed, deps, vigil) is Signal.STOP and reason is None:
                reason, asked = Reason.CANCELLED, now


def _reason(claimed: Claimed, seconds: float, deps: Deps, *, stalls: bool) -> Reason | None:
    timeout = claimed.resources.timeout_s
    if timeout is not None and seconds > timeout:
        return Reason.OUT_OF_TIME
    if stalls:
        return Reason.STALLED
    if deps.draining.is_set():
        return Reason.DRAINING
    try:
        with deps.db.read() as session:
            return None if queue.stop_requested(session, claimed.run_id) is None else Reason.CANCELLED
    except AWAY:
        return None  # the heartbeat says so in the log


def _grace(claimed: Claimed, deps: Deps) -> float:
    """Read again each time: somebody may have grown impatient."""
    try:
        with deps.db.read() as session:
            asked = queue.stop_requested(session, claimed.run_id)
    except AWAY:
        asked = None
    return deps.times.grace_s if asked is None else asked


def _beat(claimed: Claimed, deps: Deps, vigil: Vigil) -> Signal:
    """Renew the lease. A database that is away is no reason to stop: the fence protects what a newer attempt does."""
    try:
        with deps.db.write() as session:
            return stages.heartbeat(session, claimed, now=deps.now(), lease_s=deps.times.lease_s, spent=vigil.spent())
    except AWAY as error:
        log.warning("the lease could not be renewed", extra={"stage": claimed.name, "error": str(error)})
        return Signal.KEEP


def _outcome(task: Task, status: int, reason: Reason | None, vigil: Vigil, *, out_of_memory: bool) -> Outcome:
    told = task.read_outcome()
    if told is not None and told.kind != "stopped":
        return told
    if reason is Reason.OUT_OF_TIME:
        return vigil.out_of_time()
    if reason is Reason.STALLED:
        return vigil.stalled()
    if told is not None or reason is not None:
        return Outcome.stopped()
    return autopsy.of_status(
        status, out_of_memory=out_of_memory, last_words=log_tail(task.log, _LAST_WORDS), place=task.settings.work
    )


def _finish(claimed: Claimed, outcome: Outcome, deps: Deps) -> str:
    """Record the end, after all that the attempt reported, however long the database is away. Raises StaleAttempt."""

    def record() -> str:
        left_behind.deliver_for(deps.settings.spool, deps.db, claimed)
        with deps.db.write() as session:
            return stages.finish(session, claimed, outcome, now=deps.now())

    return _retried(record, deps)


def _retried(work: Callable[[], T], deps: Deps) -> T:
    """`work`, again and again while the database is away."""
    while True:
        try:
            return work()
        except AWAY as error:
            log.warning("the database is away, trying again", extra={"error": str(error)})
            time.sleep(deps.times.retry_s)
