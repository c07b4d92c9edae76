"""A stage that kills its workers is set aside; what merely ran beside it, or was killed by the weather, is not."""

from __future__ import annotations

import pytest

from engine.clock import Clock as Now
from engine.errors import Cause
from engine.store import events, queue, stages, workers
from engine.store.checkpoints import record
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import Run, StageId
from tests.store.walk import Clock, Queue

PATIENT = {"max_attempts": 100}


class Fleet:
    """Workers that are started, given stages, and die of them."""

    def __init__(self, db: Database, queue: Queue, clock: Clock) -> None:
        self.db, self.queue, self.clock, self.count = db, queue, clock, 0

    def work(self, *stage_ids: StageId) -> list[Claimed]:
        """A new worker takes these stages."""
        self.count += 1
        with self.db.write() as session:
            worker = workers.register(
                session, name=f"w{self.count}", host="far", pid=self.count, pid_started=None, queues=["default"],
                slots=8, now=self.clock(),
            )  # fmt: skip
            claimed = [
                stages.claim(session, stage_id, worker=worker, devices=(), now=self.clock(), lease_s=15)
                for stage_id in stage_ids
            ]
        found = [one for one in claimed if one is not None]
        assert len(found) == len(stage_ids)
        return found

    def die(self, *stage_ids: StageId) -> dict[StageId, str]:
        """A new worker takes these stages and dies; what became of them."""
        self.work(*stage_ids)
        self.clock.advance(20)
        return {lost.stage_id: str(lost.status) for lost in self.queue.expire()}

    def alone(self) -> dict[StageId, bool]:
        with self.db.read() as session:
            waiting = queue.ready(session, queues=["default"], now=self.clock())
        return {stage.stage_id: stage.alone for stage in waiting}


@pytest.fixture
def fleet(db: Database, queue: Queue, clock: Clock) -> Fleet:
    return Fleet(db, queue, clock)


def submit(queue: Queue, *edges: str, **options: object) -> tuple[Run, list[StageId]]:
    run = queue.submit(*edges, **(PATIENT | options))
    return run, [queue.stage(run, edge) for edge in edges]


def test_the_third_worker_in_a_row_was_the_last(db: Database, fleet: Fleet, queue: Queue) -> None:
    run, (poison,) = submit(queue, "train")
    assert fleet.die(poison) == {poison: "ready"}
    assert fleet.alone() == {poison: False}
    assert fleet.die(poison) == {poison: "ready"}
    assert fleet.alone() == {poison: True}
    assert fleet.die(poison) == {poison: "failed"}

    (stage,) = queue.stages(run)
    assert (queue.status(run), stage.cause) == ("failed", "lost")
    for word in ("quarantined", "w1", "w2", "w3", "rlx resume"):
        assert word in (stage.error or "")
    with db.read() as session:
        last = stages.attempts(session, poison)[-1]
        kinds = [event.kind for event in events.of_run(session, run.id)]
    assert [death["alone"] for death in last.detail["quarantine"]] == [True, True, True]
    assert "rlx resume" in last.detail["next"]
    assert "stage.quarantined" in kinds


def test_resuming_releases_it(fleet: Fleet, queue: Queue) -> None:
    run, (poison,) = submit(queue, "train")
    for _ in range(3):
        fleet.die(poison)
    assert queue.resume(run)
    assert fleet.alone() == {poison: False}
    assert fleet.die(poison) == {poison: "ready"}
    (claimed,) = fleet.work(poison)
    assert queue.finish(claimed) == "succeeded"


def test_a_bystander_is_cleared_by_the_attempt_that_it_runs_alone(fleet: Fleet, queue: Queue) -> None:
    run, (poison, innocent) = submit(queue, "a", "b")
    for _ in range(2):
        assert set(fleet.die(poison, innocent).values()) == {"ready"}
    assert fleet.alone() == {poison: True, innocent: True}
    (claimed,) = fleet.work(innocent)
    assert queue.finish(claimed) == "succeeded"
    assert fleet.die(poison) == {poison: "failed"}
    assert queue.statuses(run) == {"a": "failed", "b": "succeeded"}


def test_deaths_in_company_never_suffice(fleet: Fleet, queue: Queue) -> None:
    _, both = submit(queue, "a", "b")
    for _ in range(6):
        assert set(fleet.die(*both).values()) == {"ready"}


def test_company_counts_even_if_its_own_lease_ends_later(fleet: Fleet, queue: Queue, clock: Clock) -> None:
    _, (first, second) = submit(queue, "a", "b", retries={"quarantine": 2})
    for _ in range(3):
        _, other = fleet.work(first, second)
        clock.advance(10)
        queue.heartbeat(other)
        clock.advance(10)
        assert [lost.stage_id for lost in queue.expire()] == [first]
        assert fleet.alone()[first]  # a suspect, and not condemned
        clock.advance(10)
        assert [lost.stage_id for lost in queue.expire()] == [second]


def test_getting_somewhere_starts_the_count_anew(db: Database, fleet: Fleet, queue: Queue, clock: Now) -> None:
    _, (stage,) = submit(queue, "train")
    for step in range(1, 7):
        if step % 3 == 0:
            (claimed,) = fleet.work(stage)
            with db.write() as session:
                record(
                    session, run_id=claimed.run_id, stage_id=stage, number=claimed.number, step=step, labels=["latest"],
                    uri="/c", sha256="0" * 64, size=1, now=clock(),
                )  # fmt: skip
            fleet.clock.advance(20)
            assert [str(lost.status) for lost in queue.expire()] == ["ready"]
        else:
            assert fleet.die(stage) == {stage: "ready"}


def test_any_other_ending_starts_the_count_anew(fleet: Fleet, queue: Queue, clock: Clock) -> None:
    _, (stage,) = submit(queue, "train")
    for outcome in (Outcome.stopped(), Outcome.failed(Cause.LOST, "killed by hand")):
        for _ in range(2):
            assert fleet.die(stage) == {stage: "ready"}
        (claimed,) = fleet.work(stage)
        assert queue.finish(claimed, outcome) == "ready"
        assert fleet.alone() == {stage: False}


def test_a_worker_that_was_only_cut_off_does_not_count(db: Database, fleet: Fleet, queue: Queue, clock: Clock) -> None:
    _, (stage,) = submit(queue, "train")
    for _ in range(5):
        (claimed,) = fleet.work(stage)
        clock.advance(20)
        assert [str(lost.status) for lost in queue.expire()] == ["ready"]
        clock.advance(5)
        with db.write() as session:
            attempt = stages.attempts(session, claimed.stage_id)[-1]
            assert attempt.worker_id is not None
            workers.heartbeat(session, attempt.worker_id, now=clock())  # type: ignore[arg-type]  # a row's plain UUID
    assert fleet.alone() == {stage: False}


def test_a_worker_that_still_beats_is_no_death(db: Database, fleet: Fleet, queue: Queue, clock: Clock) -> None:
    _, (stage,) = submit(queue, "train", retries={"quarantine": 2})
    for _ in range(3):
        fleet.work(stage)
        clock.advance(20)
        with db.write() as session:
            workers.heartbeat(session, stages.attempts(session, stage)[-1].worker_id, now=clock())  # type: ignore[arg-type]
        assert [str(lost.status) for lost in queue.expire()] == ["ready"]
    assert fleet.alone() == {stage: False}


def test_never_means_never(fleet: Fleet, queue: Queue) -> None:
    _, (stage,) = submit(queue, "train", retries={"quarantine": None})
    for _ in range(8):
        assert fleet.die(stage) == {stage: "ready"}
    assert fleet.alone() == {stage: False}
