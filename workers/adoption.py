"""What a worker that starts finds of its dead predecessors on this host, and makes its own.

A stage process that still lives goes on under us; one that has left no outcome is lost, and its stage goes back to the
queue at once. Outcomes are `unfinished`'s, and who supervises what was found is the crew's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from engine.errors import Refused
from engine.log import get_logger
from engine.runtime.task import Task, places
from engine.store import adoption, stages, workers
from engine.store.adoption import Orphan
from engine.store.processes import process_started
from engine.store.tables import WorkerId
from workers.children import Child
from workers.devices import Devices
from workers.supervisor import Deps

log = get_logger(__name__)


@dataclass(frozen=True)
class Adopted:
    """One attempt that is ours now."""

    task: Task
    child: Child
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
        path, _ = places(deps.settings, orphan.attempt_id)
        if not path.is_file():
            continue  # it worked in another home
        task = Task.read(path)
        if child is None:
            # Where it lives it is in another's hands, or out of everybody's: its lease decides.
            if not _lives(orphan) and task.read_outcome() is None:
                _lose(orphan, deps)
        elif task.claimed.gang is None and (lent := _take(orphan, devices, deps)) is not None:
            yield Adopted(task, child, lent, orphan.started_at)
        else:  # no room, or one of several nodes: they end with their workers
            child.kill()
            _lose(orphan, deps)
    for child in children.values():  # over in the store: nothing of theirs would be recorded
        child.kill()
    for worker in {orphan.worker_id for orphan in orphans}:
        with deps.db.write() as session:
            workers.mark_gone(session, WorkerId(worker))


def _take(orphan: Orphan, devices: Devices, deps: Deps) -> tuple[str, ...] | None:
    """The devices that it has from now on; None where we have no room for it, or it is over."""
    lent = devices.lend_again(orphan.devices)
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
        workers.mark_gone(session, WorkerId(orphan.worker_id))  # first: what died under it is judged by that
        stages.lose(session, orphan.run_id, orphan.attempt_id, now=deps.now())
