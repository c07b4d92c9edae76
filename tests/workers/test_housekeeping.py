"""What any worker does for all: nothing announced is forgotten, nobody who fell silent is waited for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.plan.stage import Plan, Stage
from engine.store import locks, runs, stages, workers
from engine.store.outbox import OutboxMessage
from engine.store.session import Database
from engine.store.tables import StageId
from workers.housekeeping import LOCK, Housekeeping


@pytest.fixture
def stage_id(db: Database, clock: Any) -> StageId:
    plan = Plan("test", 0, (Stage("one", "test.one", "nowhere:nothing", ()),))
    with db.write() as session:
        run = runs.submit(session, plan, runs.Submission(source="", resolved={}), now=clock())
        return StageId(stages.for_run(session, run.id)[0].id)


@pytest.fixture
def housekeeping(db: Database, clock: Any) -> Callable[..., Housekeeping]:
    def make(send: Callable[[OutboxMessage], None], owner: str = "me") -> Housekeeping:
        return Housekeeping(db, owner, send, lambda: None, clock)

    return make


def claim(db: Database, stage_id: StageId, clock: Any) -> stages.Claimed:
    with db.write() as session:
        worker = workers.register(
            session, name="w", host="h", pid=1, pid_started=None, queues=["default"], slots=1, now=clock()
        )
        claimed = stages.claim(session, stage_id, worker=worker, devices=("slot:0",), now=clock(), lease_s=15)
    assert claimed is not None
    return claimed


def test_what_is_ready_is_announced_once(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping]
) -> None:
    sent: list[OutboxMessage] = []
    keeper = housekeeping(sent.append)
    assert [keeper.publish(), keeper.publish()] == [1, 0]
    assert [(message.stage_id, message.queue) for message in sent] == [(stage_id, "default")]


def test_a_broker_that_is_away_loses_no_announcement(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping]
) -> None:
    def away(message: OutboxMessage) -> None:
        raise ConnectionRefusedError("no broker")

    with pytest.raises(ConnectionRefusedError):
        housekeeping(away).publish()
    sent: list[OutboxMessage] = []
    assert housekeeping(sent.append).publish() == 1
    assert [message.stage_id for message in sent] == [stage_id]


def test_a_stage_comes_back_when_its_lease_has_run_out_and_not_before(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping], clock: Any
) -> None:
    keeper = housekeeping(lambda message: None)
    claimed = claim(db, stage_id, clock)
    clock.advance(14)
    assert keeper.sweep() == 0
    with db.write() as session:
        stages.heartbeat(session, claimed, now=clock(), lease_s=15)
    clock.advance(14)
    assert keeper.sweep() == 0
    clock.advance(2)
    assert keeper.sweep() == 1

    with db.read() as session:
        assert [attempt.status for attempt in stages.attempts(session, stage_id)] == ["lost"]
    assert claim(db, stage_id, clock).number == 2


def test_what_nobody_took_is_announced_again(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping], clock: Any
) -> None:
    sent: list[OutboxMessage] = []
    keeper = housekeeping(sent.append)
    keeper.publish()
    clock.advance(61)
    keeper.sweep()
    keeper.publish()
    assert [message.stage_id for message in sent] == [stage_id, stage_id]


def test_one_worker_at_a_time_sweeps(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping], clock: Any
) -> None:
    claim(db, stage_id, clock)
    clock.advance(60)
    with locks.held(db, LOCK, "another", 30, clock=clock) as theirs:
        assert theirs
        assert housekeeping(lambda message: None).sweep() == 0
    assert housekeeping(lambda message: None).sweep() == 1
