"""What any worker does for all: nothing announced is forgotten, nobody who fell silent is waited for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select

from engine.errors import DiskError, Unreachable
from engine.plan.stage import Plan, Stage
from engine.store import locks, outbox, runs, stages, workers
from engine.store.outbox import OutboxMessage
from engine.store.session import Database
from engine.store.tables import Outbox, StageId
from tests.runtime.outages import Line
from workers import housekeeping as module
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
    keeper = housekeeping(lambda message: None)
    sweep_until(keeper, clock, seconds=14)
    clock.advance(3)
    with locks.held(db, LOCK, "another", 30, clock=clock) as theirs:
        assert theirs
        assert keeper.sweep() == 0
    assert keeper.sweep() == 1


def sweep_until(keeper: Housekeeping, clock: Any, *, seconds: float) -> int:
    """Sweep every three seconds or so; how many attempts were given up."""
    lost = keeper.sweep()
    while seconds > 0:
        clock.advance(min(3.0, seconds))
        seconds -= 3
        lost += keeper.sweep()
    return lost


def test_after_an_outage_that_all_saw_nobody_is_given_up_who_renews_within_one_lease(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping], clock: Any
) -> None:
    claimed = claim(db, stage_id, clock)
    sweep_until(housekeeping(lambda message: None), clock, seconds=9)
    clock.advance(3600)  # nobody reaches the store
    # The first to come back knows nothing of it: a worker that has just started.
    assert sweep_until(housekeeping(lambda message: None, "new"), clock, seconds=12) == 0
    with db.write() as session:
        stages.heartbeat(session, claimed, now=clock(), lease_s=15)
    assert sweep_until(housekeeping(lambda message: None), clock, seconds=12) == 0
    # Who then falls silent is found as always.
    assert sweep_until(housekeeping(lambda message: None), clock, seconds=6) == 1


def test_who_died_in_the_outage_is_given_up_one_lease_after_it(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping], clock: Any
) -> None:
    claim(db, stage_id, clock)
    sweep_until(housekeeping(lambda message: None), clock, seconds=9)
    clock.advance(3600)
    keeper = housekeeping(lambda message: None)
    assert sweep_until(keeper, clock, seconds=12) == 0
    assert sweep_until(keeper, clock, seconds=6) == 1


def test_sweeps_that_are_always_late_find_the_dead_too(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping], clock: Any
) -> None:
    claim(db, stage_id, clock)
    keeper = housekeeping(lambda message: None)
    lost = []
    for _ in range(3):
        lost.append(keeper.sweep())
        clock.advance(20)
    assert lost == [0, 1, 0]


def test_a_worker_that_was_cut_off_alone_gives_nobody_up_at_once_but_others_do(
    db: Database, stage_id: StageId, clock: Any
) -> None:
    claim(db, stage_id, clock)
    line = Line(db.url)
    cut_off = Housekeeping(line, "cut off", lambda message: None, lambda: None, clock)
    other = Housekeeping(db, "other", lambda message: None, lambda: None, clock)
    sweep_until(other, clock, seconds=9)
    line.cut = True
    with pytest.raises(Unreachable):
        cut_off.sweep()
    line.cut = False
    clock.advance(7)
    assert cut_off.sweep() == 0
    assert other.sweep() == 1
    line.close()


def test_a_broker_that_is_away_spares_nobody(
    db: Database, stage_id: StageId, housekeeping: Callable[..., Housekeeping], clock: Any
) -> None:
    def away(message: OutboxMessage) -> None:
        raise Unreachable("no broker")

    keeper = housekeeping(away)
    claim(db, stage_id, clock)
    with db.write() as session:
        outbox.announce(session, stage_id, queue="default", priority=0, due_at=clock())
    sweep_until(keeper, clock, seconds=9)
    with pytest.raises(Unreachable):
        keeper.publish()
    assert sweep_until(keeper, clock, seconds=9) == 1


def test_what_dead_attempts_left_is_delivered_before_their_stages_go_to_others(
    db: Database, stage_id: StageId, clock: Any
) -> None:
    claim(db, stage_id, clock)
    seen: list[str] = []

    def deliver() -> None:
        with db.read() as session:
            seen.append(stages.attempts(session, stage_id)[-1].status)

    keeper = Housekeeping(db, "me", lambda message: None, lambda: None, clock, deliver=deliver)
    assert sweep_until(keeper, clock, seconds=15) == 1
    assert set(seen) == {"running"}


def test_what_cannot_be_delivered_does_not_keep_a_worker_from_sweeping(
    db: Database, stage_id: StageId, clock: Any
) -> None:
    def deliver() -> None:
        raise DiskError("full")

    claim(db, stage_id, clock)
    keeper = Housekeeping(db, "me", lambda message: None, lambda: None, clock, deliver=deliver)
    assert sweep_until(keeper, clock, seconds=18) == 1


def test_a_broker_that_is_away_for_a_while_hears_everything_in_order_and_once(
    db: Database, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUBLISH_EVERY_S", 0.01)
    monkeypatch.setattr(module, "BROKER_AGAIN_S", 0.01)
    expected = submitted(db, clock, priorities=[0, 5, 2, 5, 0, 9])
    refusals, heard, through = [0], [], threading.Event()

    def send(message: OutboxMessage) -> None:
        # Away at first, and again after it has taken two.
        if refusals[0] < 5 or (len(heard) == 2 and refusals[0] < 10):
            refusals[0] += 1
            raise ConnectionRefusedError("no broker")
        heard.append(message.stage_id)
        if len(heard) == len(expected):
            through.set()

    keeper = Housekeeping(db, "me", send, lambda: None, clock)
    keeper.start()
    assert through.wait(60)
    keeper.stop(60)

    assert refusals == [10]
    assert heard == expected
    with db.read() as session:
        assert session.scalar(select(func.count()).select_from(Outbox)) == 0


def test_what_becomes_ready_while_the_broker_is_away_goes_by_priority_and_not_by_age(
    db: Database, clock: Any, housekeeping: Callable[..., Housekeeping]
) -> None:
    def away(message: OutboxMessage) -> None:
        raise ConnectionRefusedError("no broker")

    old = submitted(db, clock, priorities=[1, 1])
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            housekeeping(away).publish()
    (urgent,) = submitted(db, clock, priorities=[7])
    heard: list[StageId] = []
    assert housekeeping(lambda message: heard.append(message.stage_id)).publish() == 3
    assert heard == [urgent, *old]


def submitted(db: Database, clock: Any, *, priorities: list[int]) -> list[StageId]:
    """A run of one stage for each priority; the stages in the order in which they are to be announced."""
    found = []
    for place, priority in enumerate(priorities):
        plan = Plan("test", place, (Stage("one", "test.one", "nowhere:nothing", ()),))
        with db.write() as session:
            run = runs.submit(session, plan, runs.Submission(source="", resolved={}, priority=priority), now=clock())
            found.append((-priority, place, StageId(stages.for_run(session, run.id)[0].id)))
    return [stage_id for *_, stage_id in sorted(found)]
