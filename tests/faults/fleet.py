"""An installation with real workers that may be hurt: submit to it, look into its store, and leave nothing behind.

What is done to it is `injuries`', whether it kept its promises is for `ledger` to say.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

from sqlalchemy import select

from engine.clock import utc_now
from engine.plan.stage import Plan
from engine.runtime import trees
from engine.settings import Settings, read_settings
from engine.store import runs, schema, stages
from engine.store.processes import process_started
from engine.store.session import Database, open_database
from engine.store.tables import Attempt, Checkpoint, Run, RunId, Stage, Worker
from engine.store.transitions import ENDED
from tests.waiting import until
from workers.children import python_environment

MANY = 1000
"""Attempts that a stage has: a storm must not use them up."""


@dataclass(frozen=True)
class Running:
    """An attempt that runs now, with its processes."""

    stage_id: UUID
    attempt_id: UUID
    number: int
    pid: int
    pid_started: float | None
    worker_pid: int


class Fleet:
    """Workers on one store. Close it, or use it in a `with` block: no process of it is left then."""

    def __init__(
        self,
        home: Path,
        *,
        database_url: str = "",
        broker_url: str = "",
        artifacts: Path | None = None,
        lease_s: float = 5.0,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.settings: Settings = replace(
            read_settings({"RLX_HOME": str(home), "RLX_DATABASE_URL": database_url, "RLX_BROKER_URL": broker_url}),
            artifact_url=str(artifacts or home / "artifacts"),
        )
        schema.upgrade(self.settings.database_url)
        self.db: Database = open_database(self.settings)
        self.lease_s = lease_s
        self.workers: list[subprocess.Popen[bytes]] = []
        self._started = 0

    def start_worker(
        self,
        *,
        slots: int = 1,
        settings: Settings | None = None,
        inside: Sequence[str] = (),
        preload: str = "torch",
    ) -> subprocess.Popen[bytes]:
        """A worker as on a cluster; its log is HOME/logs/worker-N.log."""
        self._started += 1
        logs = self.settings.logs
        logs.mkdir(parents=True, exist_ok=True)
        name = f"worker-{self._started}"
        arguments = ["--name", name, "--slots", str(slots), "--lease-s", str(self.lease_s)]
        command = [*inside, sys.executable, "-P", "-m", "tests.faults.worker", *arguments]
        environment = python_environment() | (settings or self.settings).environment()
        environment |= {"RLX_PRELOAD": preload, "OMP_NUM_THREADS": "1"}
        with (logs / f"{name}.log").open("ab") as log:
            worker = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.workers.append(worker)
        return worker

    def alive(self) -> list[subprocess.Popen[bytes]]:
        """The workers that have not ended, oldest first."""
        return [worker for worker in self.workers if worker.poll() is None]

    def submit(self, plan: Plan) -> RunId:
        """Queue a run that takes nothing from the cache and may fail as often as it likes, soon after each other."""
        retries = {"max_backoff": 1.0, "quarantine": None}
        submission = runs.Submission(source="", resolved={}, no_cache=True, max_attempts=MANY, retries=retries)
        with self.db.write() as session:
            return RunId(runs.submit(session, plan, submission, now=utc_now()).id)

    def status(self, run_id: RunId) -> str:
        """The run's."""
        with self.db.read() as session:
            return runs.get(session, run_id).status

    def runs(self) -> dict[RunId, int]:
        """Every run that the store knows, with its seed, in the order in which they were submitted."""
        with self.db.read() as session:
            rows = session.execute(select(Run.id, Run.seed).order_by(Run.submitted_at, Run.id))
            return {RunId(run_id): seed for run_id, seed in rows}

    def unfinished(self) -> list[RunId]:
        """Runs that have not ended, oldest first."""
        ended = [str(status) for status in ENDED[Run]]
        with self.db.read() as session:
            found = session.scalars(select(Run.id).where(Run.status.not_in(ended)).order_by(Run.submitted_at, Run.id))
            return [RunId(run_id) for run_id in found]

    def ended(self, run_id: RunId) -> str:
        """Wait for the run's end; its status."""
        until(lambda: run_id not in self.unfinished(), "the run's end")
        return self.status(run_id)

    def running(self) -> list[Running]:
        """Attempts whose process lives, by the order in which they began."""
        with self.db.read() as session:
            rows = session.execute(
                select(Attempt.stage_id, Attempt.id, Attempt.number, Attempt.pid, Attempt.pid_started, Worker.pid)
                .join(Worker, Worker.id == Attempt.worker_id)
                .where(Attempt.status == "running", Attempt.pid.is_not(None))
                .order_by(Attempt.started_at, Attempt.id)
            ).all()
        found = [Running(*row) for row in rows]
        return [one for one in found if process_started(one.pid) == one.pid_started is not None]

    def trained(self, run_id: RunId, stage: str = "begin", *, attempt: int = 1, step: int = 1) -> Running:
        """Wait until that attempt at a stage runs and has recorded a checkpoint of its own at `step` or later."""

        def look() -> Running | None:
            with self.db.read() as session:
                found = session.scalar(
                    select(Stage.id)
                    .join(Checkpoint, Checkpoint.stage_id == Stage.id)
                    .where(Stage.run_id == run_id, Stage.name == stage)
                    .where(Checkpoint.attempt >= attempt, Checkpoint.step >= step)
                    .limit(1)
                )
            return next((one for one in self.running() if one.stage_id == found and one.number >= attempt), None)

        return until(look, f"a checkpoint of {stage}, attempt {attempt}")

    def attempts(self, run_id: RunId, stage: str = "begin") -> list[Attempt]:
        """Every attempt at a stage, oldest first."""
        with self.db.read() as session:
            found = {row.name: row.id for row in stages.for_run(session, run_id)}
            return stages.attempts(session, found[stage])

    def family(self, worker: subprocess.Popen[bytes]) -> set[int]:
        """A worker's processes: its own, its nursery, and the stages that it looks after."""
        own = {one.pid for one in self.running() if one.worker_pid == worker.pid}
        return trees.members(worker.pid) | own

    def processes(self) -> set[int]:
        """Every living process that was started for this installation, whoever is its parent now."""
        mark, found = str(self.settings.home), set()
        for pid in trees.table():
            if pid != os.getpid() and trees.marked(pid, "RLX_HOME") == mark:
                found.add(pid)
        return found

    def close(self) -> None:
        """End every process, wherever it has got to."""
        for pid in self.processes():
            trees.kill_tree(pid)
        for worker in self.workers:
            worker.wait()
        self.db.close()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def small_disk(place: Path, megabytes: int = 32) -> Iterator[Path]:
    """A file system of that size in memory, mounted at `place`. Only root can have one."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "rlx-small", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def no_small_disk() -> str | None:
    """Why `small_disk` is not to be had here, or None."""
    return None if os.geteuid() == 0 else "mounting a small disk needs root"
