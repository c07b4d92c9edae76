"""What a worker that starts finds of its dead predecessors on this host, and makes its own.

A stage process that still lives goes on under us; one that ended meanwhile left its outcome, which is recorded; what is
neither is lost, and its stage goes back to the queue at once. Who supervises what was found is the crew's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from engine.errors import Refused
from engine.log import get_logger
from engine.runtime.task import Task
from engine.store import adoption, stages
from engine.store.adoption import Orphan
from engine.store.processes import process_started
from workers.children import Child
from workers.devices import Devices
from workers.supervisor import Deps

log = get_logger(__name__)


@dataclass(frozen=True)
class Adopted:
    """One attempt that is ours now."""

    task: Task
    child: Child | None
    """None where the process has ended and left an outcome."""
    devices: tuple[str, ...]
    started_at: datetime


def adopt(deps: Deps, devices: Devices, run_id: UUID | None = None) -> Iterator[Adopted]:
    """Each attempt that could be taken over; the devices that it needs are taken. With `run_id`, of that run alone."""
    with deps.db.read() as session:
        orphans = adoption.orphans(session, run_id=run_id)
    children: dict[str, Child] = {}
    for pid in {orphan.worker_pid for orphan in orphans}:
        children |= deps.children.adopt(pid)
    for orphan in orphans:
        child = children.pop(str(orphan.attempt_id), None)
        path = deps.settings.work / str(orphan.attempt_id) / "task.json"
        if not path.is_file():
            continue  # it worked in another home
        task = Task.read(path)
        if child is None and _lives(orphan):
            continue  # in another's hands, or out of everybody's: its lease decides
        if child is None and task.read_outcome() is None:
            _lose(orphan, deps)
        elif (lent := _take(orphan, child, devices, deps)) is not None:
            yield Adopted(task, child, lent, orphan.started_at)
        elif child is not None:
            child.kill()
            _lose(orphan, deps)
    for child in children.values():  # over in the store: nothing of theirs would be recorded
        child.kill()


def _take(orphan: Orphan, child: Child | None, devices: Devices, deps: Deps) -> tuple[str, ...] | None:
    """The devices that it has from now on; None where we have no room for it, or it is over."""
    lent = devices.lend_again(orphan.devices if child is not None else ())
    if lent is None:
        return None
    try:
        with deps.db.write() as session:
            if adoption.adopt(
                session, orphan, worker=deps.worker, devices=lent, now=deps.now(), lease_s=deps.times.lease_s
            ):
                return lent
    except Refused as error:
        log.warning("the stage could not be taken over", extra={"error": str(error)})
    devices.give_back(lent)
    return None


def _lives(orphan: Orphan) -> bool:
    return orphan.pid is not None and process_started(orphan.pid) == orphan.pid_started


def _lose(orphan: Orphan, deps: Deps) -> None:
    with deps.db.write() as session:
        stages.lose(session, orphan.run_id, orphan.attempt_id, now=deps.now())
