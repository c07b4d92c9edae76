"""No-op stages a second through queue, claim, process, artifact and commit; and from submit to the first training step.

    python bench/queue.py [--stages 400] [--slots 2] [--services]

Every stage writes a file in a child process, has it hashed into the artifact store, and is committed with its events:
light ones, which do without torch, in a process from a small parent that serves a few stages of their run, others each
in one of its own, from a parent that has imported torch. The peers in the same run do
less: Celery's own prefork worker with a task that writes the same file over the same broker (no state, no artifact, no
process of its own, nothing survives a crash), and a Python process a stage that imports torch and transformers, as
scripts do. `--services` measures PostgreSQL with Redis too, at RLX_TEST_POSTGRES and RLX_TEST_REDIS or their usual
places.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parts.stores import fresh_store
from sqlalchemy import func, select

from engine.clock import utc_now
from engine.plan.stage import Plan, Resources, Stage
from engine.settings import Settings, read_settings
from engine.store import runs
from engine.store.session import Database, open_database
from engine.store.tables import Metric, Run, Series
from engine.store.tables import Stage as StageRow
from workers import dispatch
from workers.children import python_environment

ROOT = Path(__file__).resolve().parent.parent
WORK = str(Path(__file__).resolve().parent / "noop")
REDIS = os.environ.get("RLX_TEST_REDIS", "redis://127.0.0.1:6379/9")
A_RUN = 10
PATIENCE_S = 600.0
LOOK_S = 0.5
"""Between two looks at whether all is over: the times are the store's, and each look takes what is measured."""
IDLE_S = 5.0
"""A worker that has nothing to do for a moment makes its stage processes cheaper to fork, as one on a cluster has."""
SENDER = """
import sys, peer_task
folder, queue, first, stop = sys.argv[1:]
for number in range(int(first), int(stop)):
    peer_task.peer.apply_async((folder, number), queue=queue)
"""


def until(condition: Callable[[], object], pause_s: float = 0.05) -> None:
    """Wait for it; give up loudly."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_S:.0f} s in vain")
        time.sleep(pause_s)


@contextmanager
def installation(services: bool) -> Iterator[Settings]:
    """A home of its own: SQLite and the filesystem broker, or a fresh PostgreSQL database and Redis."""
    with tempfile.TemporaryDirectory() as folder:
        if not services:
            yield read_settings({"RLX_HOME": folder})
            return
        with fresh_store("PostgreSQL", Path(folder)) as database:
            yield read_settings({"RLX_HOME": folder, "RLX_DATABASE_URL": database.url, "RLX_BROKER_URL": REDIS})


@contextmanager
def worker(settings: Settings, slots: int, queue: str) -> Iterator[int]:
    """A warm worker, as on a cluster: its pid."""
    env = python_environment() | settings.environment()
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # some machines have it: every process would compile the stage's module
    env["PYTHONPATH"] += os.pathsep + WORK
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "workers", "--slots", str(slots), "--queues", queue],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: dispatch.find_alive(settings))
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def memory(worker_pid: int) -> str:
    """MiB of a worker and of the parents of its stages, shared pages by halves: what the kernel calls PSS.

    Once no stage's process rests any more, with which a parent would share its pages.
    """

    def children(pid: int) -> list[int]:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def mib(pid: int) -> float:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    parents = []
    until(lambda: not any(map(children, children(worker_pid))))
    for pid in children(worker_pid):
        kind = Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2]
        parents.append(f"its {kind} parent of stages {mib(pid):.0f}")
    return f"A worker takes {mib(worker_pid):.0f} MiB, {', '.join(parents)}."


def submit(settings: Settings, db: Database, name: str, count: int, resources: Resources) -> None:
    """Runs of a few independent stages, `count` stages in all; the first is announced at once, as `rlx submit` does."""
    for first in range(0, count, A_RUN):
        plan = tuple(
            Stage(
                f"s{n}",
                "bench.noop",
                "noop_stage:noop",
                (),
                extra={"number": f"{name} {n}"},
                resources=resources,
            )
            for n in range(first, min(first + A_RUN, count))
        )
        with db.write() as session:
            runs.submit(session, Plan(name, 0, plan), runs.Submission(source="", resolved={}), now=utc_now())
        if first == 0:
            dispatch.publish(settings)


def over(db: Database, name: str) -> bool:
    """Whether every run of this name has succeeded. Raises SystemExit where one failed."""
    with db.read() as session:
        states = set(session.scalars(select(Run.status).where(Run.name == name)))
    if states & {"failed", "cancelled"}:
        raise SystemExit(f"a no-op stage of {name} did not succeed")
    return states == {"succeeded"}


def ours(settings: Settings, count: int, slots: int, *, light: bool) -> tuple[float, str]:
    """Stages a second, from the first submission to the last commit, and the memory that is taken in the end.

    With `light`, stages that do without torch.
    """
    queue = f"bench-{uuid.uuid4().hex[:8]}"
    resources = Resources(queue=queue, light=light)
    db = open_database(settings)
    try:
        with worker(settings, slots, queue) as pid:
            submit(settings, db, "warm", slots * A_RUN, resources)
            until(lambda: over(db, "warm"))
            time.sleep(IDLE_S)
            begun = utc_now()
            submit(settings, db, "measured", count, resources)
            until(lambda: over(db, "measured"), LOOK_S)
            with db.read() as session:
                ended = session.scalar(
                    select(func.max(StageRow.finished_at))
                    .join(Run, Run.id == StageRow.run_id)
                    .where(Run.name == "measured")
                )
                assert ended is not None
                assert session.scalar(select(func.count()).where(StageRow.cached)) == 0
            taken = memory(pid)
        return count / (ended - begun).total_seconds(), taken
    finally:
        db.close()


def bare_celery(broker: str, count: int, slots: int) -> float:
    """Tasks a second of Celery's prefork worker over the same kind of broker."""
    with tempfile.TemporaryDirectory() as folder:
        messages, results = Path(folder, "messages"), Path(folder, "results")
        messages.mkdir()
        results.mkdir()
        env = python_environment() | {"PEER_BROKER": broker}
        env["PYTHONPATH"] += os.pathsep + WORK
        if broker.startswith("filesystem"):
            env["PEER_FOLDER"] = str(messages)
        queue = f"peer-{uuid.uuid4().hex[:8]}"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "celery", "-A", "peer_task", "worker", "-c", str(slots), "-Q", queue],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        begin = [sys.executable, "-P", "-c", SENDER, str(results), queue]
        try:
            subprocess.run([*begin, "0", "5"], env=env, check=True)
            until(lambda: len(os.listdir(results)) == 5)
            begun = time.monotonic()
            subprocess.run([*begin, "5", str(5 + count)], env=env, check=True)
            until(lambda: len(os.listdir(results)) == 5 + count)
            return count / (time.monotonic() - begun)
        finally:
            process.terminate()
            process.wait()


def a_process_each(count: int = 3) -> float:
    """Processes a second that import torch and write a file, one after another."""
    begun = time.monotonic()
    for _ in range(count):
        subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)
    return count / (time.monotonic() - begun)


def first_step(settings: Settings) -> tuple[float, float]:
    """(seconds from typing `rlx submit`, seconds from its commit) to the first training step, model in the cache."""
    rlx = [str(Path(sys.executable).parent / "rlx"), "submit", "specs/best_lang_ppo.yaml", "algorithm.iterations=1"]
    env = os.environ | settings.environment()

    def run(*overrides: str) -> tuple[float, float]:
        typed = time.time()
        done = subprocess.run(
            [*rlx, *overrides, "--no-wait"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        handle = done.stdout.split()[0]
        until(lambda: over_or_failed(handle))
        with db.read() as session:
            run = runs.find(session, handle)
            step = session.scalar(
                select(func.min(Metric.time))
                .join(Series, Series.id == Metric.series_id)
                .where(Series.run_id == run.id, Series.key == "policy/loss")
            )
            assert step is not None, "no training step was logged"
            return step - typed, step - run.submitted_at.timestamp()

    def over_or_failed(handle: str) -> bool:
        with db.read() as session:
            return runs.find(session, handle).finished_at is not None

    db = open_database(settings)
    try:
        with worker(settings, 1, "default"):
            run()  # learns the model
            times = [run(f"algorithm.lr={lr}") for lr in ("1.1e-3", "1.2e-3", "1.3e-3")]
        return sorted(times)[1]
    finally:
        db.close()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", type=int, default=400)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--services", action="store_true")
    given = parser.parse_args()
    scripts = a_process_each()
    print("| store and broker | light stages/s | promised | with torch | Celery's own tasks/s | × a process each |")
    print("| --- | --- | --- | --- | --- | --- |")
    kinds = [("SQLite, filesystem", False, "filesystem://", 50)]
    if given.services:
        kinds.append(("PostgreSQL, Redis", True, REDIS, 100))
    memories: list[str] = []
    for label, services, broker, promised in kinds:
        rates = {}
        for light in (True, False):
            with installation(services) as settings:
                rates[light], taken = ours(settings, given.stages, given.slots, light=light)
                memories.append(taken)
        peer = bare_celery(broker, given.stages, given.slots)
        print(
            f"| {label} | {rates[True]:.0f} | {promised} | {rates[False]:.0f} | {peer:.0f} "
            f"| {rates[False] / scripts:.0f} |",
            flush=True,
        )
    with installation(services=False) as settings:
        typed, committed = first_step(settings)
    print(
        f"\nFrom `rlx submit` to the first training step, warm worker: {typed:.2f} s, "
        f"of them {committed:.2f} s after the commit."
    )
    print(memories[0])


if __name__ == "__main__":
    main()
