from __future__ import annotations

import json
import threading
import time

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from engine.errors import Refused, StaleAttempt
from engine.store import checkpoints, runs, samples, stages
from engine.store.session import Database
from engine.store.stages import Claimed, Resume, Signal
from engine.store.tables import Lease, StageId
from tests.store.test_records import Text
from tests.store.walk import Clock, Queue


def test_a_claim_carries_all_that_the_attempt_needs(queue: Queue) -> None:
    run = queue.submit("model", "train<model", seed=7)
    queue.finish(queue.claim(run, "model"))

    claimed = queue.claim(run, "train", "slot:0")

    assert (claimed.number, claimed.name, claimed.seed, claimed.handle) == (1, "train", 7, "best-lang-1")
    assert claimed.inputs == {"model": (queue.artifact().sha256, queue.artifact().uri)}
    assert (claimed.kind, claimed.entry, claimed.resources.queue) == ("test.train", "tests:stage", "default")
    assert claimed.resume is None


def test_a_claim_survives_the_way_to_a_child_process(queue: Queue) -> None:
    run = queue.submit("model", "train<model")
    queue.finish(queue.claim(run, "model"))
    claimed = queue.claim(run, "train")
    assert Claimed.from_data(json.loads(json.dumps(claimed.as_data()))) == claimed


def test_announced_twice_is_claimed_once(queue: Queue) -> None:
    run = queue.submit()
    assert queue.try_claim(queue.stage(run, "train")) is not None
    assert queue.try_claim(queue.stage(run, "train")) is None


def test_of_many_at_once_one_wins(db: Database, queue: Queue) -> None:
    stage_id = queue.stage(queue.submit(), "train")
    start, won = threading.Barrier(6), []

    def race() -> None:
        start.wait()
        if (claimed := queue.try_claim(stage_id)) is not None:
            won.append(claimed)

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    with db.read() as session:
        assert [attempt.number for attempt in stages.attempts(session, stage_id)] == [1]


def test_the_run_begins_with_its_first_claim(queue: Queue, clock: Clock) -> None:
    run = queue.submit("a", "b")
    began = clock.advance(5)
    queue.claim(run, "a")
    clock.advance(5)
    queue.claim(run, "b")
    with queue.db.read() as session:
        found = runs.find(session, run.handle)
    assert (found.status, found.started_at) == ("running", began)


def test_what_waits_for_another_cannot_be_claimed(queue: Queue) -> None:
    run = queue.submit("a", "b<a")
    assert queue.try_claim(queue.stage(run, "b")) is None


def test_a_stage_that_is_not_there_cannot_be_claimed(queue: Queue) -> None:
    run = queue.submit()
    assert queue.try_claim(StageId(run.id)) is None


def test_a_device_is_leased_once_and_free_again_afterwards(db: Database, queue: Queue) -> None:
    run = queue.submit("a", "b")
    first = queue.claim(run, "a", "gpu:0", "gpu:1")
    with pytest.raises(Refused, match="gpu:1"):
        queue.try_claim(queue.stage(run, "b"), "gpu:1")
    assert queue.statuses(run)["b"] == "ready"  # the refused claim left no trace
    queue.finish(first)
    queue.claim(run, "b", "gpu:1")
    with db.read() as session:
        assert list(session.scalars(select(Lease.device))) == ["gpu:1"]


def test_a_heartbeat_keeps_the_lease_and_brings_the_stop(queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    claimed = queue.claim(run, lease_s=15)
    for _ in range(4):
        clock.advance(10)
        assert queue.heartbeat(claimed) is Signal.KEEP
        assert queue.expire() == []
    queue.stop(run)
    assert queue.heartbeat(claimed) is Signal.STOP


def test_an_attempt_that_is_over_has_no_heartbeat(queue: Queue, clock: Clock) -> None:
    claimed = queue.claim(queue.submit())
    clock.advance(16)
    queue.expire()
    with pytest.raises(StaleAttempt):
        queue.heartbeat(claimed)
    with pytest.raises(StaleAttempt), queue.db.write() as session:
        stages.start(session, claimed, pid=1)


def test_a_late_writer_is_fenced_off(queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    old = queue.claim(run)
    clock.advance(16)
    queue.expire()
    new = queue.claim(run)
    assert (old.number, new.number) == (1, 2)

    for number, stale in ((old.number, True), (new.number, False)):
        for write in (
            lambda session, number=number: stages.fenced(session, new.stage_id, number),
            lambda session, number=number: stages.progress(
                session, new.stage_id, number, done=1, total=2, note="", now=clock()
            ),
        ):
            if stale:
                with pytest.raises(StaleAttempt), queue.db.write() as session:
                    write(session)
            else:
                with queue.db.write() as session:
                    write(session)
    with pytest.raises(StaleAttempt):
        queue.finish(old)
    assert queue.finish(new) == "succeeded"


def test_nothing_is_written_after_the_end(queue: Queue, clock: Clock) -> None:
    claimed = queue.claim(queue.submit())
    queue.finish(claimed)
    with pytest.raises(StaleAttempt), queue.db.write() as session:
        stages.fenced(session, claimed.stage_id, claimed.number)
    with pytest.raises(StaleAttempt):
        queue.finish(claimed)


def test_progress_is_shown_whatever_its_note_holds(queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    with queue.db.write() as session:
        stages.progress(session, claimed.stage_id, 1, done=3, total=4, note="\x00" + "n" * 500, now=clock())
    (stage,) = queue.stages(run)
    assert (stage.done, stage.total, len(stage.note)) == (3.0, 4.0, 255)


def test_a_second_attempt_is_told_of_the_newest_checkpoint(queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    for step in (10, 20):
        with queue.db.write() as session:
            checkpoints.record(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=1,
                step=step,
                labels=["latest"],
                uri=f"/c/{step}",
                sha256="0" * 64,
                size=1,
                now=clock(),
            )
    clock.advance(16)
    queue.expire()
    assert queue.claim(run).resume == Resume(20, "/c/20", "0" * 64)


def test_a_dead_attempt_is_the_newest_until_another_has_begun(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    first = queue.claim(run)

    def newest(number: int) -> None:
        with db.write() as session:
            stages.newest(session, first.stage_id, number)

    newest(1)
    clock.advance(20)
    queue.expire()
    newest(1)  # lost, but nobody reports the same again yet
    with pytest.raises(StaleAttempt), db.write() as session:
        stages.fenced(session, first.stage_id, 1)
    second = queue.claim(run)
    for number in (1, 3):
        with pytest.raises(StaleAttempt):
            newest(number)
    queue.finish(second)
    newest(2)


@pytest.mark.postgres
@pytest.mark.parametrize("db", ["postgres"], indirect=True)
def test_nobody_begins_a_newer_attempt_while_what_a_dead_one_left_is_written(
    db: Database, queue: Queue, clock: Clock
) -> None:
    run = queue.submit()
    first = queue.claim(run)
    clock.advance(20)
    queue.expire()
    claiming = threading.Thread(target=lambda: queue.claim(run))
    with db.write() as session:
        stages.newest(session, first.stage_id, 1)
        claiming.start()
        deadline = time.monotonic() + 60
        while not session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            assert time.monotonic() < deadline, "it did not wait for us"
        # What we write refers to the run, whose row the claim has locked: neither may wait for the other.
        _sample(session, first)
    claiming.join(60)
    assert [stage.attempt for stage in queue.stages(run)] == [2]


def _sample(session: Session, claimed: Claimed) -> None:
    samples.add(
        session,
        run_id=claimed.run_id,
        stage_id=claimed.stage_id,
        number=claimed.number,
        first=0,
        samples=[Text(0, "left behind")],
        fence=stages.held,
    )
