"""How well a cluster is used, and how long large stages wait: 1,000 stages of 1 to 8 GPUs on 4 workers of 8, simulated.

    python bench/scheduler.py [--stages 1000] [--mix uniform|small] [--load 0.8] [--seed 0]

The decisions are the product's own: a store in SQLite, `workers.choice.Chooser` over `queue.Line` and `Devices`,
`stages.claim` and `stages.finish` with their leases; only the clock and the work are pretended. The peers decide on the
same stages in the same run: strict FIFO (the head of the queue blocks all behind it) and first fit (whatever fits
starts, nothing is kept for anybody). It counts devices lent twice and gangs that were not whole, and looks at both.
"""

from __future__ import annotations

import argparse
import heapq
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Protocol
from uuid import UUID

from sqlalchemy import update

from engine.plan.stage import Needs, Plan, Resources, Stage
from engine.store import lending, runs, stages, workers
from engine.store.artifact_store import StoredArtifact
from engine.store.lending import KEPT_FOR_S, Lender
from engine.store.queue import Line, Waiting, grouped
from engine.store.session import Database, open_database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import Reservation, StageId, WorkerId
from workers.choice import Chooser
from workers.devices import Devices

WORKERS, GPUS = 4, 8
LARGE = 7
"""GPUs from which on a stage is called large."""
BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Job:
    """A stage to be: what it needs, when it is submitted, and how long it will run (in seconds, told to nobody)."""

    number: int
    gpus: int
    arrives: float
    seconds: float
    user: str = "u"
    priority: int = 0


@dataclass(frozen=True)
class Start:
    """A job that begins: on which worker, and with which devices."""

    job: Job
    worker: int
    devices: tuple[str, ...]


class Policy(Protocol):
    """Decides what starts. Times are seconds since the beginning."""

    def submit(self, jobs: Sequence[Job], now: float) -> None: ...
    def start(self, now: float) -> list[Start]: ...
    def finish(self, start: Start, now: float) -> None: ...


@dataclass
class Report:
    """What came of it."""

    begun: dict[int, float] = field(default_factory=dict)
    """Job number -> when it started."""
    order: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    ends: float = 0.0
    busy: float = 0.0
    """GPU-seconds of work up to `until`."""
    until: float = 0.0
    """When the last job was submitted: up to then there was no lack of work."""

    @property
    def utilisation(self) -> float:
        return self.busy / (WORKERS * GPUS * self.until)

    def waits(self, jobs: Sequence[Job], which: Callable[[Job], bool]) -> list[float]:
        return sorted(self.begun[job.number] - job.arrives for job in jobs if which(job))


MIXES = {"uniform": [1] * 8, "small": [70, 20, 0, 5, 0, 0, 0, 5]}
"""Weights of 1 to 8 GPUs."""


def make_jobs(
    count: int, seed: int, *, load: float = 0.9, users: int = 1, batch: int = 10, mix: str = "uniform"
) -> list[Job]:
    """Sweeps of `batch` stages each, submitted at random times, so that on average `load` of all GPUs is asked for."""
    rng = random.Random(seed)
    sizes = rng.choices(range(1, 9), MIXES[mix], k=count)
    seconds = [min(rng.expovariate(1 / 1800), 4 * 3600.0) + 60 for _ in range(count)]
    work = sum(size * length for size, length in zip(sizes, seconds, strict=True))
    span = work / (WORKERS * GPUS * load)
    times = sorted(rng.uniform(0, span) for _ in range(-(-count // batch)))
    owners = [f"user{rng.randrange(users)}" for _ in times]
    return [
        Job(number, sizes[number], times[number // batch], seconds[number], owners[number // batch])
        for number in range(count)
    ]


def simulate(jobs: Sequence[Job], policy: Policy) -> Report:
    """Let the policy work off the jobs; every decision is checked here, independently of who made it."""
    report = Report(until=max(job.arrives for job in jobs) or 1.0)
    arrivals: dict[float, list[Job]] = {}
    for job in jobs:
        arrivals.setdefault(job.arrives, []).append(job)
    events: list[tuple[float, int, Start | None]] = [(time, -1, None) for time in arrivals]
    heapq.heapify(events)
    out: dict[tuple[int, str], int] = {}
    while events:
        now, _, ended = heapq.heappop(events)
        if ended is None:
            policy.submit(arrivals[now], now)
        else:
            for device in ended.devices:
                out.pop((ended.worker, device), None)
            policy.finish(ended, now)
        for start in policy.start(now):
            _check(start, out, report)
            out.update({(start.worker, device): start.job.number for device in start.devices})
            report.begun[start.job.number] = now
            report.order.append(start.job.number)
            end = now + start.job.seconds
            report.ends = max(report.ends, end)
            report.busy += start.job.gpus * max(0.0, min(end, report.until) - now)
            heapq.heappush(events, (end, start.job.number, start))
    return report


def _check(start: Start, out: dict[tuple[int, str], int], report: Report) -> None:
    job = start.job
    gpus = {device for device in start.devices if device.startswith("gpu:")}
    if len(gpus) != job.gpus or not all(device.removeprefix("gpu:") in map(str, range(GPUS)) for device in gpus):
        report.violations.append(f"job {job.number} asked for {job.gpus} GPUs and got {start.devices}")
    if twice := [device for device in start.devices if (start.worker, device) in out]:
        report.violations.append(f"job {job.number} got {twice} of worker {start.worker}, which others hold")
    if job.number in report.begun:
        report.violations.append(f"job {job.number} started twice")


class Peer:
    """A policy in memory: `blocks` is strict FIFO, otherwise whatever fits starts in the order of the queue."""

    def __init__(self, *, blocks: bool) -> None:
        self._blocks = blocks
        self._free = [[f"gpu:{gpu}" for gpu in range(GPUS)] for _ in range(WORKERS)]
        self._queue: list[Job] = []

    def submit(self, jobs: Sequence[Job], now: float) -> None:
        self._queue += jobs

    def start(self, now: float) -> list[Start]:
        started = []
        for job in list(self._queue):
            fitting = [worker for worker in range(WORKERS) if len(self._free[worker]) >= job.gpus]
            if fitting:
                worker = min(fitting, key=lambda index: len(self._free[index]))
                devices = tuple(self._free[worker][: job.gpus])
                del self._free[worker][: job.gpus]
                self._queue.remove(job)
                started.append(Start(job, worker, devices))
            elif self._blocks:
                break
        return started

    def finish(self, start: Start, now: float) -> None:
        self._free[start.worker] += start.devices


class Ours:
    """The product's own decisions, on a store of its own."""

    def __init__(self, db: Database) -> None:
        self._db, self._time = db, 0.0
        self._jobs: dict[StageId, Job] = {}
        self._claimed: dict[int, Claimed] = {}
        self._devices = [Devices(GPUS, [str(gpu) for gpu in range(GPUS)]) for _ in range(WORKERS)]
        with db.write() as session:
            self._workers: list[WorkerId] = [
                workers.register(
                    session,
                    name=f"w{index}",
                    host=f"host{index}",
                    pid=1,
                    pid_started=None,
                    queues=["default"],
                    slots=GPUS,
                    gpus=devices.gpus,
                    now=self.now() + timedelta(microseconds=index),  # so that there is an oldest
                )
                for index, devices in enumerate(self._devices)
            ]
        self._choosers = [
            Chooser(db, worker, devices, ["default"], None, self.now)
            for worker, devices in zip(self._workers, self._devices, strict=True)
        ]

    def now(self) -> datetime:
        return BEGAN + timedelta(seconds=self._time)

    def submit(self, jobs: Sequence[Job], now: float) -> None:
        self._time = now
        plan = tuple(
            Stage(f"s{job.number}", "bench.job", "bench:job", (), resources=Resources(gpus=job.gpus)) for job in jobs
        )
        submission = runs.Submission(
            source="", resolved={}, user=jobs[0].user, priority=jobs[0].priority, no_cache=True
        )
        with self._db.write() as session:
            run = runs.submit(session, Plan("bench", 0, plan), submission, now=self.now())
            found = stages.for_run(session, run.id)
        self._jobs |= {StageId(stage.id): job for stage, job in zip(found, jobs, strict=True)}

    def start(self, now: float) -> list[Start]:
        self._time = now
        with self._db.write() as session:  # as the pulses since the last event have done, once a second
            for worker in self._workers:
                workers.heartbeat(session, worker, now=self.now())
            session.execute(update(Reservation).values(expires_at=self.now() + timedelta(seconds=KEPT_FOR_S)))
        started: list[Start] = []
        while True:
            fresh = [start for index in range(WORKERS) for start in self._look(index)]
            if not fresh:
                return started
            started += fresh

    def _look(self, index: int) -> list[Start]:
        if not self._devices[index].any_free:
            return []
        started = []
        for stage, devices in self._choosers[index].choose():
            with self._db.write() as session:
                claimed = stages.claim(
                    session,
                    stage.stage_id,
                    worker=self._workers[index],
                    devices=devices,
                    now=self.now(),
                    lease_s=1e6,
                )
            if claimed is None:
                self._devices[index].give_back(devices)
                continue
            job = self._jobs[stage.stage_id]
            self._claimed[job.number] = claimed
            started.append(Start(job, index, devices))
        return started

    def finish(self, start: Start, now: float) -> None:
        self._time = now
        sha = f"{start.job.number:064x}"
        done = Outcome.succeeded(StoredArtifact(sha, f"/artifacts/{sha}", "bench.job", 1, 1))
        with self._db.write() as session:
            stages.finish(session, self._claimed.pop(start.job.number), done, now=self.now())
        self._devices[start.worker].give_back(start.devices)


class InMemory:
    """The product's own decisions without the SQL: the same `Devices`, `Line` and `should_keep`, fed from lists.

    A test holds it to `Ours`, decision by decision.
    """

    def __init__(self) -> None:
        self._devices = [Devices(GPUS, [str(gpu) for gpu in range(GPUS)]) for _ in range(WORKERS)]
        self._ids = [WorkerId(UUID(int=index + 1)) for index in range(WORKERS)]
        self._held: list[dict[str, Needs]] = [{} for _ in range(WORKERS)]
        self._keeps: list[Waiting | None] = [None] * WORKERS
        self._queue: dict[StageId, Waiting] = {}
        self._jobs: dict[StageId, Job] = {}

    def submit(self, jobs: Sequence[Job], now: float) -> None:
        for job in jobs:
            stage_id = StageId(UUID(int=job.number + 1))
            since = BEGAN + timedelta(seconds=now)
            needs = Resources(gpus=job.gpus).needs
            self._queue[stage_id] = Waiting(
                stage_id, UUID(int=0), "job", needs, "default", job.priority, job.user, since
            )
            self._jobs[stage_id] = job

    def start(self, now: float) -> list[Start]:
        started: list[Start] = []
        while True:
            fresh = [start for index in range(WORKERS) for start in self._look(index)]
            if not fresh:
                return started
            started += fresh

    def _look(self, index: int) -> list[Start]:
        if not self._devices[index].any_free:
            return []
        cluster = self._cluster()
        line = Line(
            grouped(self._queue.values()),
            share=partial(lending.share, cluster, ["default"]),
            first=cluster[index].keeps,
        )
        taken = self._devices[index].take(
            line, lambda stage, left: lending.should_keep(stage, self._ids[index], left, cluster)
        )
        if taken.kept is not None:
            self._keeps = [None if kept == taken.kept else kept for kept in self._keeps]
        self._keeps[index] = taken.kept
        for stage, _ in taken.lent:
            del self._queue[stage.stage_id]
            self._held[index][stage.user] = self._held[index].get(stage.user, Needs()) + stage.needs
        return [Start(self._jobs[stage.stage_id], index, devices) for stage, devices in taken.lent]

    def _cluster(self) -> list[Lender]:
        total, queues = Needs(GPUS, GPUS), frozenset({"default"})
        kept = [keeps if keeps and keeps.stage_id in self._queue else None for keeps in self._keeps]
        return [
            Lender(worker, f"w{index}", "host", queues, total, dict(self._held[index]), keeps=kept[index])
            for index, worker in enumerate(self._ids)
        ]

    def finish(self, start: Start, now: float) -> None:
        self._devices[start.worker].give_back(start.devices)
        self._held[start.worker][start.job.user] -= Resources(gpus=start.job.gpus).needs


def ours(jobs: Sequence[Job], folder: Path) -> Report:
    """The product's decisions about these jobs, on a new store in `folder`."""
    db = open_database(f"sqlite:///{folder / 'rlx.db'}")
    try:
        return simulate(jobs, Ours(db))
    finally:
        db.close()


def quantile(ordered: Sequence[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--load", type=float, default=0.8)
    parser.add_argument("--mix", choices=MIXES, default="uniform")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    jobs = make_jobs(given.stages, given.seed, load=given.load, mix=given.mix)
    with tempfile.TemporaryDirectory() as folder:
        reports = {
            "rlx": ours(jobs, Path(folder)),
            "strict FIFO": simulate(jobs, Peer(blocks=True)),
            "first fit": simulate(jobs, Peer(blocks=False)),
        }
    mixed = f"{given.stages} stages ({given.mix} mix) on {WORKERS} workers of {GPUS} GPUs"
    print(f"{mixed}, load {given.load}, seed {given.seed}")
    print(f"waiting times in minutes; large: {LARGE} and 8 GPUs\n")
    print("| policy | GPUs in use | large: p50 | p95 | max | all: p50 | p95 | mean | through after, h | violations |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, report in reports.items():
        large, every = report.waits(jobs, lambda job: job.gpus >= LARGE), report.waits(jobs, lambda job: True)
        cells = [
            f"{100 * report.utilisation:.1f} %",
            *(f"{quantile(large, part) / 60:.0f}" for part in (0.5, 0.95, 1.0)),
            *(f"{quantile(every, part) / 60:.0f}" for part in (0.5, 0.95)),
            f"{sum(every) / len(every) / 60:.0f}",
            f"{report.ends / 3600:.1f}",
            str(len(report.violations)),
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
