"""The same plans on a machine where nothing goes wrong: what everything else is held against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engine.plan.stage import Plan
from tests.faults import ledger
from tests.faults.fleet import Fleet
from tests.faults.ledger import Record


def undisturbed(home: Path, plans: Sequence[Plan]) -> list[Record]:
    """Carry out each plan with one worker on SQLite and the file system; their records."""
    with Fleet(home, lease_s=60) as fleet:
        found = [fleet.submit(plan) for plan in plans]
        fleet.start_worker()
        for run_id in found:
            assert fleet.ended(run_id) == "succeeded"
            assert ledger.breaches(fleet.db, run_id) == []
        return [ledger.read(fleet.db, run_id) for run_id in found]
