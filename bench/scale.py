"""How the store's everyday questions grow with what it holds: the same at a thousand runs and at a hundred thousand.

    python bench/scale.py [--runs 1000 10000 100000] [--stages 10] [--services]

A store is filled with ended runs of one experiment, ten stages each, and a thousand stages that wait; then each
question that a command, a worker or its housekeeping asks all the time is asked of it. Milliseconds, medians of five;
and how many bytes a run and its stages take. Then, in an empty store, what runs of many stages take (asked once). The
smallest store of the same run is the peer: what grows is what to look at first.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from parts.stores import fresh_store, size_of
from sqlalchemy import insert, text
from sqlalchemy.orm import Session

from engine.clock import utc_now
from engine.errors import NotFound
from engine.plan.stage import Plan, Stage
from engine.store import outbox, queue, runs, stages, workers
from engine.store.artifact_store import StoredArtifact
from engine.store.columns import table_of
from engine.store.session import Database
from engine.store.stages import Outcome
from engine.store.tables import Run, StageId
from engine.store.tables import Stage as StageRow

ROOT = Path(__file__).resolve().parent.parent
BATCH = 500
WAITING = 1_000
WIDE = (10, 100, 1_000, 10_000)
"""Stages of a single run."""


def fill(db: Database, first: int, count: int, stages_each: int) -> None:
    """Runs numbered from `first` of one experiment, all of them over."""
    from engine.cli.compiling import compiled

    variant = compiled(ROOT / "specs" / "best_lang.yaml", [])[0]
    submission = runs.Submission(source=variant.loaded.source, resolved=variant.loaded.resolved)
    if first == 0:
        with db.write() as session:
            runs.submit(session, Plan("seed", 0, variant.plan.stages), submission, now=utc_now())
    planned = (variant.plan.stages * stages_each)[:stages_each]
    with db.read() as session:
        spec_id = runs.find(session, "seed-1").spec_id
    started = utc_now() - timedelta(days=300)
    for begin in range(first, first + count, BATCH):
        run_rows, stage_rows = [], []
        for number in range(begin, min(begin + BATCH, first + count)):
            run_id, when = uuid.uuid4(), started + timedelta(minutes=number)
            run_rows.append(
                {
                    "id": run_id,
                    "handle": f"filled-{number}",
                    "name": "filled",
                    "number": number,
                    "spec_id": spec_id,
                    "status": "succeeded",
                    "stop_requested": False,
                    "seed": number,
                    "overrides": [f"seed={number}"],
                    "resolved": variant.loaded.resolved,
                    "priority": 0,
                    "tags": ["paper"] if number % 1000 == 0 else [],
                    "notes": "",
                    "user": f"user{number % 20}",
                    "code": {},
                    "packages": {},
                    "hardware": {},
                    "tiny": False,
                    "functions_hash": "",
                    "submitted_at": when,
                    "started_at": when,
                    "finished_at": when,
                }
            )
            for position, stage in enumerate(planned):
                stage_rows.append(_stage(run_id, position, stage, "succeeded", when))
        with db.write() as session:
            session.execute(insert(table_of(Run)), run_rows)
            session.execute(insert(table_of(StageRow)), stage_rows)


def _stage(run_id: Any, position: int, stage: Any, status: str, when: Any) -> dict[str, Any]:
    return {
        "id": uuid.uuid4(),
        "run_id": run_id,
        "position": position,
        "name": f"{stage.name}{position}",
        "kind": stage.kind,
        "version": stage.version,
        "entry": stage.run,
        "config": dict(stage.config),
        "extra": dict(stage.extra),
        "resources": asdict(stage.resources),
        "queue": "default",
        "priority": 0,
        "status": status,
        "max_attempts": 3,
        "cache": True,
        "cache_key": uuid.uuid4().hex,
        "ready_at": when,
        "announce_after": when if status == "ready" else None,
        "finished_at": when if status == "succeeded" else None,
    }


def queued(db: Database) -> None:
    """One run with a thousand stages that wait for a worker."""
    from engine.cli.compiling import compiled

    variant = compiled(ROOT / "specs" / "best_lang.yaml", [])[0]
    submission = runs.Submission(source=variant.loaded.source, resolved=variant.loaded.resolved)
    with db.write() as session:
        run = runs.submit(session, Plan("queued", 0, variant.plan.stages), submission, now=utc_now())
        stage = variant.plan.stages[0]
        rows = [_stage(run.id, 100 + n, stage, "ready", utc_now() + timedelta(days=1)) for n in range(WAITING)]
        session.execute(insert(table_of(StageRow)), rows)


def questions(last: int) -> dict[str, tuple[bool, Callable[[Session], object]]]:
    """Label -> (whether it writes, what it does)."""

    def unknown(session: Session) -> None:
        try:
            runs.find(session, "filed-7")
        except NotFound:
            return

    from engine.cli.compiling import compiled

    variant = compiled(ROOT / "specs" / "best_lang.yaml", [])[0]
    submission = runs.Submission(source=variant.loaded.source, resolved=variant.loaded.resolved)
    return {
        "`rlx ls`: the newest 50": (False, lambda session: runs.listing(session)),
        "`rlx ls --tag paper`": (False, lambda session: runs.listing(session, tag="paper")),
        "a run by its handle": (False, lambda session: runs.find(session, f"filled-{last}")),
        "a handle that does not exist": (False, unknown),
        "submit": (True, lambda session: runs.submit(session, variant.plan, submission, now=utc_now())),
        "what is ready, for a worker": (
            False,
            lambda session: queue.ready(session, queues=["default"], now=utc_now() + timedelta(days=2)),
        ),
        "leases that ran out": (True, lambda session: stages.expire(session, utc_now())),
        "what to announce again": (True, lambda session: outbox.announce_again(session, utc_now())),
    }


def ask(db: Database, writes: bool, work: Callable[[Session], object]) -> float:
    """Milliseconds, median of five."""
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        with db.write() if writes else db.read() as session:
            work(session)
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def one_run(db: Database, count: int) -> dict[str, float]:
    """Milliseconds that a run of so many independent stages takes at its submission and around one of its attempts."""
    now, times = utc_now(), {}
    planned = tuple(Stage(f"s{n}", "bench", "bench:stage", (), extra={"n": n, "of": count}) for n in range(count))

    def timed(label: str, work: Callable[[Session], Any]) -> Any:
        begun = time.perf_counter()
        with db.write() as session:
            found = work(session)
        times[label] = 1e3 * (time.perf_counter() - begun)
        return found

    submission = runs.Submission(source="", resolved={"stages": count})
    run = timed("submit", lambda session: runs.submit(session, Plan("wide", 0, planned), submission, now=now))
    with db.write() as session:
        worker = workers.register(
            session, name="w", host="bench", pid=1, pid_started=None, queues=["default"], slots=1, now=now
        )
        first = StageId(stages.for_run(session, run.id)[0].id)
    claimed = timed(
        "claim", lambda session: stages.claim(session, first, worker=worker, devices=["slot:0"], now=now, lease_s=60)
    )
    artifact = StoredArtifact(sha256=uuid.uuid4().hex * 2, uri="file:///nowhere", kind="bench", bytes=1, files=1)
    timed("end", lambda session: stages.finish(session, claimed, Outcome.succeeded(artifact), now=now))
    return times


def main() -> None:
    """Print a table a database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--stages", type=int, default=10, help="a run")
    parser.add_argument("--services", action="store_true", help="PostgreSQL too")
    given = parser.parse_args()
    for services in (False, True) if given.services else (False,):
        rows: dict[str, list[str]] = {}
        kind = "PostgreSQL" if services else "SQLite"
        with tempfile.TemporaryDirectory() as folder, fresh_store(kind, Path(folder)) as db:
            held, before = 0, size_of(db)
            for count in given.runs:
                fill(db, held, count - held, given.stages)
                if held == 0:
                    queued(db)
                held = count
                if services:
                    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                        connection.execute(text("ANALYZE"))
                for label, (writes, work) in questions(held - 1).items():
                    rows.setdefault(label, []).append(f"{ask(db, writes, work):.1f}")
            each = (size_of(db) - before) / held
        print(f"| {kind}, ms | {' | '.join(f'{n:,} runs' for n in given.runs)} |")
        print(f"| --- |{' --- |' * len(given.runs)}")
        for label, figures in rows.items():
            print(f"| {label} | {' | '.join(figures)} |")
        print(f"\nA run with its {given.stages} stages takes {each / 1024:.1f} KiB.\n", flush=True)
        with tempfile.TemporaryDirectory() as folder, fresh_store(kind, Path(folder)) as db:
            wide = {count: one_run(db, count) for count in WIDE}
        print(f"| {kind}, one run, ms | {' | '.join(f'{count:,} stages' for count in wide)} |")
        print(f"| --- |{' --- |' * len(wide)}")
        for label in ("submit", "claim", "end"):
            print(f"| {label} | {' | '.join(f'{times[label]:.1f}' for times in wide.values())} |")
        print(flush=True)


if __name__ == "__main__":
    main()
