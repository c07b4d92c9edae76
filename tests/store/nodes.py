"""Stages of several nodes in miniature: workers of a slot or two, a run for each stage, and looks at what is leased."""

from __future__ import annotations

from sqlalchemy import select

from engine.plan.stage import Plan, Resources, Stage
from engine.store import members, runs, stages, waiting, workers
from engine.store.session import Database
from engine.store.stages import Claimed
from engine.store.tables import Lease, RunId, StageId, WorkerId
from tests.store.walk import Clock, Queue


class Nodes:
    """Runs of one stage over several nodes, and workers of a slot or two."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self.db, self.clock, self.queue = db, clock, Queue.__new__(Queue)
        self.queue.db, self.queue.clock = db, clock
        self._runs = 0

    def worker(self, name: str, slots: int = 1, queues: tuple[str, ...] = ("default",)) -> WorkerId:
        with self.db.write() as session:
            return workers.register(
                session,
                name=name,
                host=f"host-{name}",
                pid=1,
                pid_started=None,
                queues=queues,
                slots=slots,
                now=self.clock(),
            )

    def submit(self, nodes: int = 2, slots: int = 1, **submission: object) -> StageId:
        self._runs += 1
        resources = Resources(launcher="torchrun", processes=1, nodes=nodes, slots=slots)
        resources = resources if nodes > 1 else Resources(slots=slots)
        plan = Plan("several", self._runs, (Stage("train", "test", "tests:stage", (), resources=resources),))
        with self.db.write() as session:
            chosen = runs.Submission(source="", resolved={}, user="ann", **submission)  # type: ignore[arg-type]
            run = runs.submit(session, plan, chosen, now=self.clock())
            return StageId(stages.for_run(session, RunId(run.id))[0].id)

    def claim(self, stage: StageId, worker: WorkerId, *devices: str) -> Claimed | None:
        return self.queue.try_claim(stage, *(devices or ("slot:0",)), worker=worker)

    def leases(self) -> set[tuple[WorkerId, str]]:
        with self.db.read() as session:
            return {(WorkerId(row.worker_id), row.device) for row in session.scalars(select(Lease))}

    def calls(self, worker: WorkerId) -> list[members.Call]:
        with self.db.read() as session:
            return members.calls(session, worker)

    def beat(self, *ids: WorkerId) -> None:
        with self.db.write() as session:
            for worker in ids:
                workers.heartbeat(session, worker, now=self.clock())

    def renew(self, claimed: Claimed, node: int = 1) -> None:
        with self.db.write() as session:
            members.renew(session, claimed.attempt_id, node, now=self.clock(), lease_s=15)

    def why(self) -> list[str]:
        with self.db.read() as session:
            return [it.why for it in waiting.listing(session, ["default"], now=self.clock())]
