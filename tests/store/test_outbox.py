from __future__ import annotations

import threading

import pytest
from sqlalchemy import func, select, text

from engine.errors import Unreachable
from engine.store import outbox
from engine.store.outbox import OutboxMessage
from engine.store.session import Database
from engine.store.tables import Outbox
from tests.store.walk import Clock, Queue


def _rows(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(Outbox)) or 0


def test_the_message_names_the_stage_its_queue_and_its_priority(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit(priority=4)
    sent: list[OutboxMessage] = []
    assert outbox.publish(db, sent.append, now=clock()) == 1
    assert [(m.stage_id, m.queue, m.priority) for m in sent] == [(queue.stage(run, "train"), "default", 4)]
    assert _rows(db) == 0


def test_the_most_urgent_goes_first_and_equals_in_order(db: Database, queue: Queue, clock: Clock) -> None:
    runs = [queue.submit(salt=str(n), priority=priority) for n, priority in enumerate([0, 5, 0, 5])]
    stages = [queue.stage(run, "train") for run in runs]
    sent: list[OutboxMessage] = []
    while outbox.publish(db, sent.append, now=clock(), limit=3):
        pass
    assert [message.stage_id for message in sent] == [stages[1], stages[3], stages[0], stages[2]]


def test_no_more_is_said_at_once_than_there_are_slots_to_hear_it(db: Database, queue: Queue, clock: Clock) -> None:
    queue.new_worker("another")  # of eight slots, as the first
    for n in range(20):
        queue.submit(salt=str(n))
    lonely = [queue.submit(salt=str(n), queue="nobody known listens here") for n in range(2)]
    sent: list[OutboxMessage] = []
    assert outbox.publish(db, sent.append, now=clock()) == 22
    assert [message.queue for message in sent].count("default") == 16, "who hears of one takes all that fits"
    assert [message.stage_id for message in sent[16:]] == [queue.stage(run, "train") for run in lonely]
    assert _rows(db) == 0


def test_what_the_broker_refused_is_sent_later_and_the_rest_only_once(db: Database, queue: Queue, clock: Clock) -> None:
    for n in range(4):
        queue.submit(salt=str(n))
    sent: list[OutboxMessage] = []

    def send(message: OutboxMessage) -> None:
        if len(sent) == 2:
            raise Unreachable("the broker is away")
        sent.append(message)

    with pytest.raises(Unreachable):
        outbox.publish(db, send, now=clock())
    assert (len(sent), _rows(db)) == (2, 2)
    outbox.publish(db, lambda message: sent.append(message), now=clock())
    assert (len({message.stage_id for message in sent}), len(sent), _rows(db)) == (4, 4, 0)


def test_a_publisher_that_dies_half_way_is_taken_over(db: Database, queue: Queue, clock: Clock) -> None:
    queue.submit()

    class Killed(BaseException):
        pass

    def die(message: OutboxMessage) -> None:
        db.close()
        raise Killed

    original = outbox._settle
    outbox._settle = lambda *args: None  # type: ignore[assignment]  # as if the power went
    try:
        with pytest.raises(Killed):
            outbox.publish(db, die, now=clock())
    finally:
        outbox._settle = original
    assert queue.announced() == []
    clock.advance(30)
    assert len(queue.announced()) == 1


def test_no_more_are_taken_than_asked_for_whatever_the_planner_thinks(db: Database, queue: Queue, clock: Clock) -> None:
    with db.write() as session:  # statistics of an empty table are what an idle installation has
        session.execute(text("ANALYZE"))
    for n in range(12):
        queue.submit(salt=str(n))
    sent: list[OutboxMessage] = []
    assert outbox.publish(db, sent.append, now=clock(), limit=2) == len(sent) == 2
    assert _rows(db) == 10


def test_publishers_side_by_side_send_each_message_once(db: Database, queue: Queue, clock: Clock) -> None:
    expected = {queue.stage(queue.submit(salt=str(n)), "train") for n in range(12)}
    sent: list[OutboxMessage] = []
    start = threading.Barrier(4)

    def publish() -> None:
        start.wait()
        while outbox.publish(db, sent.append, now=clock(), limit=2):
            pass

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A publisher may look while the last rows are in another's hands, but never takes them too.
    assert len(sent) == len(expected)
    assert {message.stage_id for message in sent} == expected


def test_what_the_broker_lost_is_announced_again_ever_more_rarely(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    began = clock()
    queue.announced()
    heard = []
    for _ in range(220):
        clock.advance(10)
        with db.write() as session:
            outbox.announce_again(session, clock())
        if queue.announced():
            heard.append((clock() - began).total_seconds())
    assert heard == [60, 120, 240, 480, 960, 1560, 2160]  # doubling, then every ten minutes
    queue.claim(run)
    clock.advance(10_000)
    with db.write() as session:
        assert outbox.announce_again(session, clock()) == 0


def test_however_long_it_has_waited_a_lost_message_is_repeated_within_ten_minutes(
    db: Database, queue: Queue, clock: Clock
) -> None:
    run = queue.submit()
    for _ in range(40):  # the broker loses every one of them, for three quarters of an hour
        queue.announced()
        clock.advance(61)
        with db.write() as session:
            outbox.announce_again(session, clock())
    queue.announced()
    clock.advance(600)
    with db.write() as session:
        outbox.announce_again(session, clock())
    assert queue.announced() == [queue.stage(run, "train")]


def test_what_is_still_in_the_outbox_is_not_put_there_twice(db: Database, queue: Queue, clock: Clock) -> None:
    queue.submit()
    clock.advance(100)
    with db.write() as session:
        assert outbox.announce_again(session, clock()) == 0
    assert _rows(db) == 1
