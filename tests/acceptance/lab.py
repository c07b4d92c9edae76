"""An installation for tests of the queue: its store, the workers that a test starts in it, and looks into its store."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engine.clock import utc_now
from engine.plan.stage import Plan, Stage
from engine.settings import Settings
from engine.store import artifacts, checkpoints, events, runs, samples, stages
from engine.store.session import Database, open_database
from engine.store.tables import Run, RunId
from tests.waiting import until
from workers import dispatch
from workers.children import python_environment

WORKER = """
import sys
from engine import log
from engine.settings import read_settings
from workers import main
from workers.supervisor import Times
log.configure()
main.PULSE_S = main.GLANCE_S = float(sys.argv[2])
main.run_worker(read_settings(), queues=[sys.argv[1]], times=Times(lease_s=float(sys.argv[3]), heartbeat_s=0.3))
"""


class Lab:
    """One installation, the workers that a test starts in it, and looks into its store."""

    def __init__(self, settings: Settings, gate: Path) -> None:
        self.settings, self.gate = settings, gate
        self.db: Database = open_database(settings)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.queue = "default"

    def submit(self, *plan: Stage, name: str = "queue_test") -> Run:
        chosen = tuple(replace(stage, resources=replace(stage.resources, queue=self.queue)) for stage in plan)
        with self.db.write() as session:
            return runs.submit(session, Plan(name, 3, chosen), runs.Submission(source="", resolved={}), now=utc_now())

    def embedded(self, run: Run) -> subprocess.Popen[bytes]:
        """The worker that `rlx submit` starts."""
        self.workers.append(dispatch.start_worker(self.settings, run_id=run.id))
        return self.workers[-1]

    def worker(self, *, pulse_s: float = 0.5, lease_s: float = 60) -> subprocess.Popen[bytes]:
        """A worker as on a cluster."""
        command = [sys.executable, "-P", "-c", WORKER, self.queue, str(pulse_s), str(lease_s)]
        self.workers.append(subprocess.Popen(command, env=python_environment() | self.settings.environment()))
        return self.workers[-1]

    def status(self, run: Run) -> str:
        with self.db.read() as session:
            return runs.get(session, RunId(run.id)).status

    def ended(self, run: Run) -> str:
        return until(lambda: (status := self.status(run)) in ("succeeded", "failed", "cancelled") and status)

    def stages(self, run: Run) -> dict[str, Any]:
        with self.db.read() as session:
            return {stage.name: stage for stage in stages.for_run(session, RunId(run.id))}

    def attempts(self, run: Run, name: str) -> list[Any]:
        stage = self.stages(run)[name]
        with self.db.read() as session:
            return stages.attempts(session, stage.id)

    def output(self, run: Run, name: str, file: str) -> str:
        with self.db.read() as session:
            return Path(artifacts.of_run(session, RunId(run.id))[name].uri, file).read_text()

    def paused(self) -> int:
        """Wait until a counting stage pauses; its pid."""
        marker = self.gate.with_suffix(".reached")
        pid = int(until(lambda: marker.exists() and marker.read_text()))
        marker.unlink()
        return pid

    def recorded(self, run: Run, step: int) -> None:
        """Wait until the checkpoint of `step` counts."""

        def newest() -> bool:
            with self.db.read() as session:
                return step in [row.step for row in checkpoints.of_run(session, RunId(run.id))]

        until(newest)

    def happened(self, run: Run, kind: str) -> bool:
        with self.db.read() as session:
            return kind in [event.kind for event in events.of_run(session, RunId(run.id))]

    def count(self, name: str = "count") -> Stage:
        """A stage that counts to 9 and pauses at 5."""
        return Stage(
            name, "test.count", "queue_stages:count", (), extra={"steps": 9, "pause_at": 5, "gate": str(self.gate)}
        )

    def check_count(self, run: Run, name: str = "count") -> None:
        """The run ended as if nothing had happened, and every report is there once."""
        rng, total = np.random.default_rng(3), 0.0
        for _ in range(9):
            total += float(rng.random())
        assert float(self.output(run, name, "total.txt")) == total
        with self.db.read() as session:
            texts = sorted(sample.text for sample in samples.of_run(session, RunId(run.id), limit=100))
        assert texts == sorted(
            ["after 0", *(f"{when} {step}" for when in ("before", "after") for step in range(1, 10))]
        )
