"""The stages that a worker works on: takes what fits from the store, each under a supervisor in a thread of its own.

A message from the broker only makes it look sooner; priorities, places in the queue and what is ready at all
are read from SQL. What is taken away by another worker meanwhile costs a look and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from engine.errors import Refused, Unreachable
from engine.log import get_logger
from engine.plan.stage import Needs
from engine.store import members
from engine.store.queue import Waiting
from engine.store.tables import StageId
from workers import adoption
from workers.choice import Chooser
from workers.devices import Devices
from workers.nodes import carry_out
from workers.supervisor import Deps, supervise, take_over

log = get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """An attempt to begin, or to go on with; its devices are taken."""

    stage_id: StageId
    devices: tuple[str, ...]
    work: Callable[[], object]
    """False says that there was nothing to claim."""
    nodes: int = 1


class Crew:
    """Supervisors at work. `look` may be called from any thread, at any time."""

    def __init__(
        self,
        deps: Deps,
        devices: Devices,
        queues: Sequence[str],
        run_id: UUID | None = None,
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._deps, self._devices, self._run_id, self._on_idle = deps, devices, run_id, on_idle
        self._chooser = Chooser(deps.db, deps.worker, devices, queues, run_id, deps.now)
        self._closed = False
        self._looking = threading.Lock()
        self._busy: set[StageId] = set()
        self._changed = threading.Condition()

    def look(self) -> int:
        """Start what is ready and fits; how many."""
        jobs = self._choose()
        for job in jobs:
            self._start(job)
        return len(jobs)

    def answer_calls(self) -> None:
        """Begin with the nodes of other workers' attempts for which they have leased devices of ours."""
        with self._deps.db.read() as session:
            calls = members.calls(session, self._deps.worker)
        for call in calls:
            with self._looking:
                # A node of an earlier attempt may still be ending here, or a stage that is about to be refused.
                if call.stage_id in self._busy or not self._devices.lend_exactly(call.devices):
                    continue
                self._busy.add(call.stage_id)
            self._start(Job(call.stage_id, call.devices, partial(carry_out, call, self._deps)))

    def close(self) -> None:
        """Start nothing more; what runs goes on."""
        self._closed = True

    def misfit(self) -> Waiting | None:
        """A stage that waits for us, and needs more than we have."""
        return self._chooser.misfit()

    def adopt(self) -> None:
        """Go on with what a predecessor of ours, dead by now, left at work on this host."""
        for found in adoption.adopt(self._deps, self._devices, self._run_id):
            age_s = (self._deps.now() - found.started_at).total_seconds()
            stage_id = found.task.claimed.stage_id
            self._busy.add(stage_id)
            self._start(Job(stage_id, found.devices, partial(take_over, found.task, found.child, age_s, self._deps)))

    def _choose(self, *, ended: bool = False) -> list[Job]:
        """What is ready and fits; from now on it is ours to carry out. `ended`: one of ours has just ended."""
        if not self.has_room:
            return []
        with self._looking:
            jobs = [
                Job(stage.stage_id, devices, partial(supervise, stage.stage_id, devices, self._deps), stage.nodes)
                for stage, devices in self._chooser.choose(self._busy, ended=ended)
            ]
            self._busy.update(job.stage_id for job in jobs)
        return jobs

    def _start(self, job: Job) -> None:
        threading.Thread(target=self._work, args=(job,), daemon=True).start()

    def _work(self, job: Job | None) -> None:
        """Carry out one job after another, as long as there is any: a thread of its own for each costs more."""
        while job is not None:
            threading.current_thread().name = f"stage {job.stage_id}"
            job = self._next() if self._carry_out(job) else None

    def _carry_out(self, job: Job) -> bool:
        """Whether to look for another one."""
        try:
            if job.work() is False:
                self._chooser.missed()
                return job.nodes == 1  # the other nodes' devices may be gone for a while: the next pulse looks again
            return True
        except Refused as error:  # leased by another worker for a node of its attempt, or of ours: see `answer_calls`
            log.info("the stage was not claimed", extra={"stage_id": str(job.stage_id), "why": str(error)})
        except Unreachable as error:
            log.warning("the stage could not be claimed", extra={"error": str(error)})
        except Exception:
            log.exception("supervising failed", extra={"stage_id": str(job.stage_id)})
        finally:
            self._devices.give_back(job.devices)
            with self._changed:
                self._busy.discard(job.stage_id)
                self._changed.notify_all()
        return False

    def _next(self) -> Job | None:
        """The next job for a thread that has carried out its own; others that fit get threads of their own."""
        try:
            jobs = self._choose(ended=True)
        except Unreachable as error:
            log.warning("the queue could not be read", extra={"error": str(error)})
            return None
        for job in jobs[1:]:
            self._start(job)
        if not jobs and not self._busy:
            self._on_idle()
        return jobs[0] if jobs else None

    @property
    def lends(self) -> Needs:
        """What the worker has, lent or not."""
        return self._devices.total

    @property
    def has_room(self) -> bool:
        """Whether another stage could be started."""
        return not self._closed and not self._deps.draining.is_set() and self._devices.any_free

    @property
    def size(self) -> int:
        """How many stages are being worked on."""
        return len(self._busy)

    def join(self, timeout_s: float) -> bool:
        """Wait until no stage is being worked on; whether that came to be in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout_s)
