"""A fleet under random faults: real workers train small models while processes, servers and a disk fail them.

    python bench/chaos.py --minutes 5 --seed 1 --database postgres --broker redis

Runs are submitted as others end. At the end every fault is healed, every run must end, and each is held against an
undisturbed run of the same seed: weights, metrics, samples, evaluations. Exits 1 on any loss. The seed fixes the
schedule (what, when, which victim); what the victim is doing at that moment is the machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.errors import Unreachable
from engine.store.tables import RunId
from tests.faults import ledger, training
from tests.faults.fleet import Fleet, no_small_disk, small_disk
from tests.faults.ledger import Record
from tests.faults.servers import Postgres, RabbitMQ, Redis
from tests.faults.storm import Storm, schedule
from tests.faults.undisturbed import undisturbed

SEEDS = (11, 12, 13)
AT_ONCE = 3
"""Runs under way."""
END_WITHIN_S = 900.0
BROKERS = {"redis": Redis, "rabbitmq": RabbitMQ}


def main() -> int:
    """Blow for the given time, then judge."""
    parser = argparse.ArgumentParser(description="Real workers and real training under random faults.")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--broker", choices=["filesystem", *BROKERS], default="filesystem")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults, on average")
    parser.add_argument("--steps", type=int, default=60, help="of training, a stage")
    parser.add_argument("--keep", action="store_true", help="keep the installation, to look into it")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))
    home = Path(tempfile.mkdtemp(prefix="rlx-chaos-"))
    try:
        plans = [training.plan(seed, steps=given.steps, pace_s=0) for seed in SEEDS]
        expected = dict(zip(SEEDS, undisturbed(home / "undisturbed", plans), strict=True))
        figures = blow(home, given, expected)
    finally:
        if not given.keep:
            shutil.rmtree(home, ignore_errors=True)
    report(figures)
    if given.keep:
        print(f"kept at {home}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["losses"] or figures["strange"] else 0


def blow(home: Path, given: argparse.Namespace, expected: dict[int, Record]) -> dict[str, object]:
    """The storm, and what it left."""
    with ExitStack() as stack:
        database = stack.enter_context(Postgres()) if given.database == "postgres" else None
        broker = stack.enter_context(BROKERS[given.broker]()) if given.broker in BROKERS else None
        disk = None if no_small_disk() else stack.enter_context(small_disk(home / "disk"))
        fleet = stack.enter_context(
            Fleet(
                home / "fleet",
                database_url=database.url if database else "",
                broker_url=broker.url if broker else "",
                artifacts=disk,
            )
        )
        storm = Storm(fleet, given.workers, database, broker, disk)
        submitted: list[RunId] = []
        planned = schedule(given.seed, sorted(storm.kinds), every_s=given.every)
        began = time.monotonic()
        storm.tell = lambda kind: print(f"{time.monotonic() - began:7.1f} s  {kind}", file=sys.stderr)
        while time.monotonic() - began < given.minutes * 60:
            top_up(storm, submitted, given.steps)
            fault = next(planned)
            storm.pass_by(fault.gap_s)
            storm.strike(fault.kind, pick=fault.pick, seconds=fault.seconds)
        storm.calm()
        blown = time.monotonic() - began
        while fleet.unfinished() and time.monotonic() - began < blown + END_WITHIN_S:
            storm.pass_by(0.5)
        # A run whose submission was cut off before the answer came is among them, or is not.
        runs, points, attempts = fleet.runs(), 0, 0
        losses = [f"run {run_id} was forgotten" for run_id in submitted if run_id not in runs]
        for run_id, seed in runs.items():
            found = ledger.read(fleet.db, run_id)
            said = ledger.losses(found, expected[seed]) + ledger.breaches(fleet.db, run_id)
            losses += [f"run {run_id} (seed {seed}): {one}" for one in said]
            points += found.points
            attempts += sum(len(fleet.attempts(run_id, name)) for name in training.STAGES)
        return {
            "seed": given.seed,
            "database": given.database,
            "broker": given.broker,
            "seconds": round(blown, 1),
            "faults": dict(sorted(storm.hits.items())),
            "faults_in_all": storm.hits.total(),
            "runs": len(runs),
            "stages": len(training.STAGES) * len(runs),
            "attempts": attempts,
            "points": points,
            "losses": losses,
            "strange": storm.strange,
        }


def top_up(storm: Storm, submitted: list[RunId], steps: int) -> None:
    """Keep so many runs under way, where the store can be written."""
    try:
        while not storm.held_up and len(storm.fleet.unfinished()) < AT_ONCE:
            seed = SEEDS[len(submitted) % len(SEEDS)]
            submitted.append(storm.fleet.submit(training.plan(seed, steps=steps)))
    except Unreachable:
        return  # the database is away: the next time


def report(figures: dict[str, object]) -> None:
    """The figures for people."""
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for kind, count in value.items():
                print(f"    {kind:<20}{count:>5}")
        elif isinstance(value, list):
            print(f"{name}: {len(value)}")
            for line in value:
                print(f"    {line}")
        else:
            print(f"{name}: {value}")


if __name__ == "__main__":
    sys.exit(main())
