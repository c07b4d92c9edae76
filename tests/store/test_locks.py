from __future__ import annotations

import threading

from engine.store import locks
from engine.store.session import Database
from tests.store.walk import Clock


def test_one_owner_at_a_time(db: Database, clock: Clock) -> None:
    with locks.held(db, "housekeeping", "ann", 30, clock=clock) as anns:
        with locks.held(db, "housekeeping", "bob", 30, clock=clock) as bobs:
            assert (anns, bobs) == (True, False)
        with locks.held(db, "another", "bob", 30, clock=clock) as other:
            assert other
    with locks.held(db, "housekeeping", "bob", 30, clock=clock) as bobs:
        assert bobs


def test_the_owner_keeps_it_by_asking_again(db: Database, clock: Clock) -> None:
    with db.write() as session:
        assert locks.acquire(session, "x", "ann", now=clock(), ttl_s=30)
        clock.advance(20)
        assert locks.acquire(session, "x", "ann", now=clock(), ttl_s=30)
        clock.advance(20)
        assert not locks.acquire(session, "x", "bob", now=clock(), ttl_s=30)


def test_a_dead_owner_is_replaced_and_cannot_release_its_successors_lock(db: Database, clock: Clock) -> None:
    with db.write() as session:
        locks.acquire(session, "x", "ann", now=clock(), ttl_s=30)
        clock.advance(30)
        assert locks.acquire(session, "x", "bob", now=clock(), ttl_s=30)
        locks.release(session, "x", "ann")
        assert not locks.acquire(session, "x", "cyd", now=clock(), ttl_s=30)


def test_of_many_that_ask_at_once_one_gets_it(db: Database, clock: Clock) -> None:
    start, inside, over = threading.Barrier(5), [], threading.Barrier(5)

    def ask(name: str) -> None:
        start.wait()
        with locks.held(db, "x", name, 30, clock=clock) as mine:
            if mine:
                inside.append(name)
            over.wait()

    threads = [threading.Thread(target=ask, args=(str(n),)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 1
