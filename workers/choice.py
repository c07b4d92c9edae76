"""Which of the waiting stages a worker starts now: the order from the store, its own devices, and what it keeps free.

No process is started here and nothing is claimed: the devices are taken, and `crew` sees to the rest. The
simulator of `bench/scheduler.py` makes its decisions with this, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from uuid import UUID

from sqlalchemy.orm import Session

from engine.clock import Clock
from engine.errors import Unreachable
from engine.log import get_logger
from engine.plan.stage import Needs
from engine.store import lending, queue
from engine.store.lending import Lender
from engine.store.queue import Waiting
from engine.store.session import Database
from engine.store.tables import StageId, WorkerId
from workers.devices import Devices

log = get_logger(__name__)

_RENEW_AFTER = timedelta(seconds=lending.KEPT_FOR_S / 3)
_ONE_SLOT = Needs(1)
_AHEAD, _AHEAD_FOR = 8, timedelta(seconds=0.1)
"""So many of the stages that come next are remembered, for so long: where stages take milliseconds, reading the queue
for each of them takes as long as they do."""
_ALONE_FOR = timedelta(seconds=5)
"""So long nothing is remembered once another worker was first: two that remember the same are in each other's way."""


class Chooser:
    """Chooses for one worker. One thread at a time."""

    def __init__(
        self, db: Database, worker: WorkerId, devices: Devices, queues: Sequence[str], run_id: UUID | None, now: Clock
    ) -> None:
        self._db, self._worker, self._devices = db, worker, devices
        self._queues, self._run_id, self._now = list(queues), run_id, now
        self._kept: StageId | None = None
        self._ahead: deque[Waiting] = deque()
        self._looked = self._missed = now() - _ALONE_FOR
        self._renewed = now()

    def choose(
        self, busy: Collection[StageId] = (), *, ended: bool = False
    ) -> Sequence[tuple[Waiting, tuple[str, ...]]]:
        """Stages to start now, each with devices that are taken for it. `busy` ones are left out.

        Where a stage has just `ended`, what came next a moment ago is good enough. Raises Unreachable; nothing is taken
        then.
        """
        since = self._now() - self._looked
        if ended and since < _AHEAD_FOR and (lent := self._devices.take(_Ahead(self._ahead, busy)).lent):
            return lent
        self._ahead.clear()
        self._looked = self._now()
        with self._db.read() as session:
            cluster = _Cluster(session, self._worker, self._queues, self._now())
            line = queue.line(
                session,
                queues=self._queues,
                now=self._now(),
                run_id=self._run_id,
                share=cluster.share,
                first=cluster.kept if self._kept is not None else None,
                busy=busy,
            )
            taken = self._devices.take(line, cluster.should_keep, cluster.has_others)
            # Another may have taken it over since: what counts is what the store says.
            was = cluster.kept if self._kept is not None or taken.kept is not None else None
            if ended and since < _AHEAD * _AHEAD_FOR and taken.kept is None:  # else it would be forgotten unused
                self._look_ahead(line)
        self._keep(taken.kept, was)
        return taken.lent

    def missed(self) -> None:
        """Another worker was first with a stage that was chosen."""
        self._ahead.clear()
        self._missed = self._now()

    def _look_ahead(self, line: queue.Line) -> None:
        """Remember what comes next, as far as nothing has to be known of the cluster to start it."""
        if self._now() - self._missed < _ALONE_FOR:
            return
        while len(self._ahead) < _AHEAD and (stage := line.next(self._devices.total)) is not None:
            if stage.needs != _ONE_SLOT or stage.alone or stage.nodes > 1:
                break
            self._ahead.append(stage)

    def misfit(self) -> Waiting | None:
        """A stage that waits for this worker, and needs more than it has."""
        with self._db.read() as session:
            waiting = queue.ready(session, queues=self._queues, now=self._now(), run_id=self._run_id)
            lenders = lending.lenders(session, self._now()) if any(stage.nodes > 1 for stage in waiting) else []
        return next((stage for stage in waiting if not self._may_fit(stage, lenders)), None)

    def _may_fit(self, stage: Waiting, lenders: Sequence[Lender]) -> bool:
        """Whether there is enough of us, and of others for its other nodes, lent or not."""
        able = stage.nodes == 1 or sum(lender.serves(stage) for lender in lenders) >= stage.nodes
        return able and self._devices.fits(stage.needs)

    def _keep(self, stage: Waiting | None, was: Waiting | None) -> None:
        """Record the reservation where it has changed from what it `was`, or would lapse."""
        kept, now = None if stage is None else stage.stage_id, self._now()
        if kept != (None if was is None else was.stage_id) or (
            kept is not None and now - self._renewed >= _RENEW_AFTER
        ):
            try:
                with self._db.write() as session:
                    lending.keep(session, self._worker, kept, now=now)
            except Unreachable as error:  # what was taken is started all the same; the next look records it
                log.warning("a reservation could not be recorded", extra={"error": str(error)})
                return
            self._renewed = now
            if stage is not None and kept != self._kept:
                log.info("keeping devices for a large stage", extra={"stage": stage.name, "needs": str(stage.needs)})
        self._kept = kept


class _Ahead:
    """Offers what was remembered; what is taken, or given to another thread meanwhile, is forgotten."""

    def __init__(self, ahead: deque[Waiting], busy: Collection[StageId]) -> None:
        self._ahead, self._busy = ahead, busy

    def next(self, largest: Needs) -> Waiting | None:
        """See `Offers`."""
        while self._ahead:
            stage = self._ahead.popleft()
            if stage.stage_id not in self._busy:
                return stage
        return None


class _Cluster:
    """What the worker knows of all lenders; read where it matters, which is seldom."""

    def __init__(self, session: Session, worker: WorkerId, queues: Sequence[str], now: datetime) -> None:
        self._session, self._worker, self._queues, self._now = session, worker, queues, now

    @cached_property
    def lenders(self) -> list[Lender]:
        return lending.lenders(self._session, self._now)

    def share(self, user: str, more: Needs) -> float:
        return lending.share(self.lenders, self._queues, user, more)

    def should_keep(self, stage: Waiting, left: Needs) -> bool:
        return lending.should_keep(stage, self._worker, left, self.lenders)

    def has_others(self, stage: Waiting) -> bool:
        return lending.others(stage, self._worker, self.lenders) is not None

    @property
    def kept(self) -> Waiting | None:
        """What the worker keeps its devices for, as the store knows it."""
        return next((lender.keeps for lender in self.lenders if lender.worker_id == self._worker), None)
