"""A queue in miniature: plans to submit, a worker to claim with, and the walk of a stage from one end to the other."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import text

from engine.plan.stage import Plan, Resources, Stage
from engine.store import outbox, runs, stages, workers
from engine.store.artifact_store import StoredArtifact
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import Run, RunId, StageId, WorkerId
from engine.store.tables import Stage as StageRow


class Clock(Protocol):
    """The fake clock of tests/conftest.py."""

    def __call__(self) -> datetime: ...
    def advance(self, seconds: float) -> datetime: ...


def plan(*edges: str, name: str = "best_lang", seed: int = 0, salt: str = "", queue: str = "default") -> Plan:
    """A plan from `a`, `b<a`, `c<a,b`: each word a stage and the stages it reads."""
    nodes = []
    for edge in edges or ("train",):
        stage, _, reads = edge.partition("<")
        inputs = {producer: producer for producer in reads.split(",") if producer}
        how = {"extra": {"salt": salt}, "resources": Resources(queue=queue)}
        nodes.append(Stage(stage, f"test.{stage}", "tests:stage", (), inputs=inputs, **how))
    return Plan(name, seed, tuple(nodes))


class Queue:
    """One store, one worker, one clock."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self.db, self.clock = db, clock
        self.worker = self.new_worker("w")

    def new_worker(self, name: str) -> WorkerId:
        with self.db.write() as session:
            return workers.register(
                session,
                name=name,
                host="elsewhere",
                pid=1,
                pid_started=None,
                queues=["default"],
                slots=8,
                now=self.clock(),
            )

    def submit(self, *edges: str, **submission: object) -> Run:
        plan_of = {key: submission.pop(key) for key in ("name", "seed", "salt", "queue") if key in submission}
        chosen = runs.Submission(**{"source": "version: 1", "resolved": {"seed": 0}, **submission})  # type: ignore[arg-type]
        with self.db.write() as session:
            return runs.submit(session, plan(*edges, **plan_of), chosen, now=self.clock())  # type: ignore[arg-type]

    def announced(self) -> list[StageId]:
        sent: list[StageId] = []
        outbox.publish(self.db, lambda message: sent.append(message.stage_id), now=self.clock())
        return sent

    def stage(self, run: Run, name: str) -> StageId:
        return next(StageId(stage.id) for stage in self.stages(run) if stage.name == name)

    def stages(self, run: Run) -> list[StageRow]:
        with self.db.read() as session:
            return stages.for_run(session, RunId(run.id))

    def statuses(self, run: Run) -> dict[str, str]:
        return {stage.name: stage.status for stage in self.stages(run)}

    def status(self, run: Run) -> str:
        with self.db.read() as session:
            return runs.find(session, run.handle).status

    def try_claim(
        self, stage_id: StageId, *devices: str, lease_s: float = 15.0, worker: WorkerId | None = None
    ) -> Claimed | None:
        with self.db.write() as session:
            return stages.claim(
                session, stage_id, worker=worker or self.worker, devices=devices, now=self.clock(), lease_s=lease_s
            )

    def claim(self, run: Run, name: str = "train", *devices: str, lease_s: float = 15.0) -> Claimed:
        claimed = self.try_claim(self.stage(run, name), *devices, lease_s=lease_s)
        assert claimed is not None
        return claimed

    def finish(self, claimed: Claimed, outcome: Outcome | None = None) -> str:
        with self.db.write() as session:
            return stages.finish(session, claimed, outcome or Outcome.succeeded(self.artifact()), now=self.clock())

    def heartbeat(self, claimed: Claimed, lease_s: float = 15.0) -> stages.Signal:
        with self.db.write() as session:
            return stages.heartbeat(session, claimed, now=self.clock(), lease_s=lease_s)

    def expire(self) -> list[stages.Expired]:
        with self.db.write() as session:
            return stages.expire(session, self.clock())

    def stop(self, run: Run) -> bool:
        with self.db.write() as session:
            return runs.request_stop(session, runs.find(session, run.handle), now=self.clock(), by="me")

    def resume(self, run: Run, **options: object) -> bool:
        with self.db.write() as session:
            return runs.resume(session, runs.find(session, run.handle), now=self.clock(), **options)  # type: ignore[arg-type]

    @staticmethod
    def artifact(text: str = "weights") -> StoredArtifact:
        """An artifact with the content hash of `text`."""
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return StoredArtifact(sha256, f"/artifacts/{sha256}", "test", len(text), 1)


def until_it_waits(db: Database, future: Future[Any]) -> None:
    """Until the other transaction is stuck behind ours, or through. (SQLite: it is stuck at its beginning.)"""
    if db.engine.dialect.name != "postgresql":
        return
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not future.done():
        with db.engine.connect() as connection:
            if connection.scalar(waiting):
                return
        time.sleep(0.01)
