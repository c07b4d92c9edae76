"""One node of an attempt that another worker has claimed, from the call to the end of its processes here.

The first node's worker supervises the attempt: it alone looks whether to stop, keeps the time and records the end.
Here the node's lease is renewed, and its process ended as soon as the attempt is over. A node that fails tells the
first one, which says so; where that one says nothing, we do.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress

from sqlalchemy.orm import Session

from engine.errors import Cause, StaleAttempt
from engine.log import get_logger
from engine.runtime import autopsy, ranks
from engine.runtime.task import Task, log_tail
from engine.store import members, stages
from engine.store.members import Call, MemberState
from engine.store.stages import Claimed, Outcome
from workers import kept
from workers.children import Child, NoChild
from workers.devices import gpu_ids, threads_of
from workers.supervisor import AWAY, Deps, open_log, tell_log

log = get_logger(__name__)

_FIRST_SPEAKS_S = ranks.PATIENCE_S + 5.0
"""So long after the end of a node that failed the first one may take to end the attempt."""


def carry_out(call: Call, deps: Deps) -> None:
    """See one node through to its end; its devices are ours."""
    try:
        with deps.db.write() as session:
            claimed = stages.joined(session, call.attempt_id, call.node)
            _renew(session, claimed, deps, state=str(MemberState.RUNNING))
        if deps.draining.is_set():  # called while we were told to leave
            _end_attempt(claimed, Outcome.stopped(), deps)
            return
        _see_through(claimed, call, deps)
    except StaleAttempt:
        log.info("the attempt is over, and so is its node", extra={"attempt": str(call.attempt_id), "node": call.node})
    finally:
        with suppress(*AWAY), deps.db.write() as session:
            members.end(session, call.attempt_id, call.node)


def _see_through(claimed: Claimed, call: Call, deps: Deps) -> None:
    fields = {"run": claimed.handle, "stage": claimed.name, "attempt": claimed.number, "node": call.node}
    log.info("node started", extra=fields)
    claimed = _await_gate(claimed, deps)
    task, child = Task.lent(claimed, deps.settings, gpu_ids(call.devices), threads_of(call.devices, deps.slots)), None
    try:
        try:
            open_log(task)
            kept.make_room(task)
            task.write()
            child = deps.children.spawn(task.spawned_as, task.path, task.log, run_id=claimed.run_id)
            outcome = _attend(child, task, deps)
        except StaleAttempt:
            raise
        except Exception as error:
            log.exception("the node could not be supervised", extra=fields)
            tell_log(task, error)
            outcome = autopsy.of_exception(error)
        log.info("node ended", extra=fields | {"how": outcome.kind, "error": outcome.error})
        if outcome.kind != "succeeded":
            _await_the_first(claimed, outcome, deps)
    finally:
        if child is not None:
            deps.children.let_go(child, claimed.run_id)
        task.clear()


def _await_gate(claimed: Claimed, deps: Deps) -> Claimed:
    """The attempt with the place where its nodes meet, once that is open. Raises StaleAttempt."""
    beaten = time.monotonic()
    while True:
        with suppress(*AWAY), deps.db.read() as session:
            claimed = stages.joined(session, claimed.attempt_id, _node(claimed))
            if claimed.gang is not None and claimed.gang.port is not None:
                return claimed
        if time.monotonic() - beaten >= deps.times.heartbeat_s:
            beaten = time.monotonic()
            _beat(claimed, deps)
        time.sleep(deps.times.poll_s)


def _attend(child: Child, task: Task, deps: Deps) -> Outcome:
    """Until the node's process has ended: renew its lease; how it ended. Raises StaleAttempt where the attempt did."""
    times, begun = deps.times, time.monotonic()
    beaten, asked = begun, 0.0
    while (status := child.wait(times.poll_s)) is None:
        now = time.monotonic()
        if child.pid is None and now - begun > times.birth_s:
            raise NoChild("no process could be made for the node: the nursery does not answer")
        if deps.draining.is_set():
            asked = asked or now
            if now - asked > times.grace_s:
                child.kill()
            child.signal(signal.SIGTERM)  # it asks the first node to stop, which leaves at a checkpoint
        if now - beaten >= times.heartbeat_s:
            beaten = now
            _beat(task.claimed, deps)
    if child.refused is not None:
        raise NoChild(f"no process could be made for the node: {child.refused}")
    told = task.read_outcome()
    if told is not None:
        return told
    return autopsy.of_status(status, out_of_memory=False, last_words=log_tail(task.log, 4 << 10))


def _await_the_first(claimed: Claimed, outcome: Outcome, deps: Deps) -> None:
    """Give the first node time to end the attempt for what it heard from ours; else end it, for it heard nothing."""
    gang, until = claimed.gang, time.monotonic() + _FIRST_SPEAKS_S
    beaten = time.monotonic()
    while time.monotonic() < until:
        with suppress(*AWAY), deps.db.read() as session:
            stages.joined(session, claimed.attempt_id, _node(claimed))
        if time.monotonic() - beaten >= deps.times.heartbeat_s:
            beaten = time.monotonic()
            _beat(claimed, deps)
        time.sleep(deps.times.poll_s)
    who = "" if gang is None else f"{gang.name(gang.node)}: "
    cause = outcome.cause or Cause.LOST
    _end_attempt(claimed, Outcome.failed(cause, f"{who}{outcome.error}", detail=outcome.detail), deps)


def _end_attempt(claimed: Claimed, outcome: Outcome, deps: Deps) -> None:
    """End it in the store; the first node's worker hears of that at its next heartbeat, and ends what runs there."""
    with deps.db.write() as session:
        stages.finish(session, claimed, outcome, now=deps.now())


def _beat(claimed: Claimed, deps: Deps) -> None:
    """Renew the node's lease. A database that is away is no reason to stop."""
    try:
        with deps.db.write() as session:
            _renew(session, claimed, deps)
    except AWAY as error:
        log.warning("the node's lease could not be renewed", extra={"stage": claimed.name, "error": str(error)})


def _renew(session: Session, claimed: Claimed, deps: Deps, **more: str) -> None:
    members.renew(session, claimed.attempt_id, _node(claimed), now=deps.now(), lease_s=deps.times.lease_s, **more)


def _node(claimed: Claimed) -> int:
    assert claimed.gang is not None, "who was called is a node of several"
    return claimed.gang.node
