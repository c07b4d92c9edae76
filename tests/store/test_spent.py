"""Where an attempt's time went, by how it ended; sums over attempts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.errors import Cause
from engine.store import spent, stages
from engine.store.session import Database
from engine.store.stages import Outcome
from tests.store.walk import Clock, Queue

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
READ = {"total": {"start_up": 2.0, "training": 60.0, "saving": 3.0}, "kept": {"start_up": 2.0, "training": 40.0}}


@dataclass
class Attempt:
    status: str
    seconds: float | None
    spent: dict[str, Any] = field(default_factory=lambda: READ)
    started_at: datetime = BEGAN

    @property
    def finished_at(self) -> datetime | None:
        return None if self.seconds is None else BEGAN + timedelta(seconds=self.seconds)


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (Attempt("running", None), {"start_up": 2, "training": 60, "saving": 3}),
        (Attempt("succeeded", 70), {"start_up": 2, "training": 60, "saving": 3, "other": 5}),
        # 80 s in all, 42 of them before the last checkpoint
        (Attempt("failed", 80), {"start_up": 2, "training": 40, "lost": 38}),
        (Attempt("lost", 80), {"start_up": 2, "training": 40, "lost": 38}),
        (Attempt("cancelled", 42.0002), {"start_up": 2, "training": 40}),
        # killed before its first heartbeat
        (Attempt("lost", 15, {}), {"lost": 15}),
        (Attempt("running", None, {}), {}),
        # clocks that disagree a little make no negative time
        (Attempt("succeeded", 64, READ), {"start_up": 2, "training": 60, "saving": 3}),
    ],
)
def test_an_attempt(attempt: Attempt, expected: dict[str, float]) -> None:
    assert spent.of_attempt(attempt) == expected


def test_sums() -> None:
    assert spent.added([{"training": 1.0, "lost": 2.0}, {"training": 3.0, "start_up": 1.0}, {}]) == {
        "start_up": 1.0,
        "training": 4.0,
        "lost": 2.0,
    }


def test_what_a_heartbeat_told_outlives_the_worker(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    clock.advance(70)
    with db.write() as session:
        stages.heartbeat(session, claimed, now=clock(), lease_s=15, spent=READ)
    clock.advance(15)
    queue.expire()
    second = queue.claim(run)
    clock.advance(30)
    queue.finish(second, Outcome.failed(Cause.SPEC_ERROR, "bad"))
    with db.read() as session:
        first, last = stages.attempts(session, claimed.stage_id)
    assert spent.of_attempt(first) == {"start_up": 2, "training": 40, "lost": 43}
    assert spent.of_attempt(last) == {"lost": 30}


def test_a_report_without_readings_leaves_those_of_the_heartbeats(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    with db.write() as session:
        stages.heartbeat(session, claimed, now=clock(), lease_s=15, spent=READ)
    queue.finish(claimed)
    with db.read() as session:
        assert stages.attempts(session, claimed.stage_id)[0].spent == READ
