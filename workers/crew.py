"""The stages that a worker works on: takes what fits from the store, each under a supervisor in a thread of its own.

A message from the broker only makes it look sooner; priorities, places in the queue and what is ready at all
are read from SQL. What is taken away by another worker meanwhile costs a look and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from uuid import UUID

from engine.errors import Unreachable
from engine.log import get_logger
from engine.plan.stage import Needs
from engine.store.queue import Waiting
from engine.store.tables import StageId
from workers import adoption
from workers.choice import Chooser
from workers.devices import Devices
from workers.supervisor import Deps, supervise, take_over

log = get_logger(__name__)


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
        self._threads: set[threading.Thread] = set()
        self._changed = threading.Condition()

    def look(self) -> int:
        """Start what is ready and fits; how many."""
        if self._closed or self._deps.draining.is_set() or not self._devices.any_free:
            return 0
        with self._looking:
            chosen = self._chooser.choose(self._busy)
            for stage, devices in chosen:
                self._start(stage.stage_id, devices)
        return len(chosen)

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
            self._start(
                found.task.claimed.stage_id,
                found.devices,
                partial(take_over, found.task, found.child, age_s, self._deps),
            )

    def _start(self, stage_id: StageId, devices: tuple[str, ...], work: Callable[[], object] | None = None) -> None:
        work = work or partial(supervise, stage_id, devices, self._deps)
        thread = threading.Thread(
            target=self._work, args=(stage_id, devices, work), name=f"stage {stage_id}", daemon=True
        )
        with self._changed:
            self._busy.add(stage_id)
            self._threads.add(thread)
        thread.start()

    def _work(self, stage_id: StageId, devices: tuple[str, ...], work: Callable[[], object]) -> None:
        look_again = False
        try:
            work()
            look_again = True
        except Unreachable as error:
            log.warning("the stage could not be claimed", extra={"error": str(error)})
        except Exception:
            log.exception("supervising failed", extra={"stage_id": str(stage_id)})
        finally:
            self._devices.give_back(devices)
            with self._changed:
                self._busy.discard(stage_id)
                self._threads.discard(threading.current_thread())
                self._changed.notify_all()
        if look_again:
            try:
                if self.look() == 0 and not self._busy:
                    self._on_idle()
            except Unreachable as error:
                log.warning("the queue could not be read", extra={"error": str(error)})

    @property
    def lends(self) -> Needs:
        """What the worker has, lent or not."""
        return self._devices.total

    @property
    def size(self) -> int:
        """How many stages are being worked on."""
        return len(self._busy)

    def join(self, timeout_s: float) -> bool:
        """Wait until no stage is being worked on; whether that came to be in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout_s)
