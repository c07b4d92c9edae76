from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, StatementError

from engine.errors import Refused, Unreachable
from engine.store import connection, events
from engine.store.schema import upgrade
from engine.store.session import Database
from engine.store.tables import Event, Lock
from tests.store.walk import Clock


def _count(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(Event)) or 0


def test_a_write_is_there_after_its_block_and_not_if_the_block_raises(db: Database, clock: Clock) -> None:
    with db.write() as session:
        events.add(session, "test", "kept", now=clock())
    with pytest.raises(RuntimeError):
        _write_and_raise(db, clock)
    assert _count(db) == 1


def _write_and_raise(db: Database, clock: Clock) -> None:
    with db.write() as session:
        events.add(session, "test", "dropped", now=clock())
        raise RuntimeError


def test_a_reader_cannot_write(db: Database, clock: Clock) -> None:
    with pytest.raises(DBAPIError, match=r"read-?\s?only"), db.read() as session:
        events.add(session, "test", "no", now=clock())
    with db.write() as session:  # and leaves no trace on the connection it borrowed
        events.add(session, "test", "yes", now=clock())
    assert _count(db) == 1


def test_a_reader_sees_one_moment(db: Database, clock: Clock) -> None:
    with db.read() as session:
        before = session.scalar(select(func.count()).select_from(Event))
        with db.write() as writer:
            events.add(writer, "test", "meanwhile", now=clock())
        assert session.scalar(select(func.count()).select_from(Event)) == before == 0
    assert _count(db) == 1


def test_a_glance_tells_of_every_commit_once_and_of_nothing_else(db: Database, clock: Clock) -> None:
    glance = db.watch()
    if db.engine.dialect.name == "postgresql":
        assert glance is None, "there a glance would cost a query"
        return
    assert glance is not None
    glance()
    told = [glance()]
    _count(db)
    told.append(glance())
    with pytest.raises(RuntimeError):
        _write_and_raise(db, clock)
    told.append(glance())
    with db.write() as session:
        events.add(session, "test", "kept", now=clock())
    told += [glance(), glance()]

    assert told == [False, False, False, True, False]


def test_writers_wait_for_each_other(db: Database, clock: Clock) -> None:
    def count_up() -> None:
        for _ in range(10):
            with db.write() as session:
                events.add(session, "test", "one", now=clock())

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _count(db) == 40


def test_a_child_process_gets_connections_of_its_own(db: Database, clock: Clock) -> None:
    with db.write() as session:
        events.add(session, "test", "parent", now=clock())
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with db.write() as session:
                events.add(session, "test", "child", now=clock())
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with db.write() as session:
        events.add(session, "test", "parent again", now=clock())
    assert _count(db) == 3


def test_times_are_aware_and_utc(db: Database) -> None:
    with pytest.raises((ValueError, StatementError), match="time zone"), db.write() as session:
        events.add(session, "test", "naive", now=datetime(2026, 3, 1, 12, 0))
    tokyo = timezone(timedelta(hours=9))
    with db.write() as session:
        events.add(session, "test", "tokyo", now=datetime(2026, 3, 1, 21, 0, 0, 123456, tzinfo=tokyo))
    with db.read() as session:
        time = session.scalars(select(Event.time)).one()
    assert time == datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert time.utcoffset() == timedelta(0)


def test_a_missing_table_points_to_the_upgrade(db: Database) -> None:
    with pytest.raises(Refused, match="rlx db upgrade"), db.read() as session:
        session.execute(text("SELECT * FROM nowhere"))


def test_a_transaction_that_lost_is_run_again(db: Database) -> None:
    tries = []

    def work(session: object) -> str:
        tries.append(session)
        if len(tries) < 3:
            raise _lost()
        return "done"

    assert db.transact(work) == "done"
    assert len(tries) == 3
    assert len(set(map(id, tries))) == 3


def test_a_fault_of_the_query_is_not_tried_again(db: Database) -> None:
    tries = []

    def work(session: object) -> None:
        tries.append(session)
        raise DBAPIError("SELECT", {}, Exception("syntax"))

    with pytest.raises(DBAPIError):
        db.transact(work)
    assert len(tries) == 1


def _lost() -> DBAPIError:
    class Deadlock(Exception):
        sqlstate = "40P01"

    return DBAPIError("UPDATE", {}, Deadlock())


@pytest.mark.postgres
def test_a_client_that_freezes_inside_a_transaction_does_not_keep_its_locks(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 1.0)
    upgrade(postgres_url)
    frozen, waiting = Database(postgres_url), Database(postgres_url)
    with waiting.write() as session:
        session.execute(insert(Lock).values(name="row", owner="nobody", expires_at=datetime.now(UTC)))
    take = update(Lock).where(Lock.name == "row")

    def freeze() -> None:
        with frozen.write() as session:
            session.execute(take.values(owner="frozen"))
            with waiting.write() as other:
                other.execute(text("SET LOCAL lock_timeout = '60s'"))
                other.execute(take.values(owner="waiting"))
            session.execute(text("SELECT 1"))

    with pytest.raises(Unreachable, match="does not answer"):
        freeze()
    with waiting.read() as session:
        assert session.scalar(select(Lock.owner)) == "waiting"
    for database in (frozen, waiting):
        database.close()


@pytest.mark.postgres
def test_a_pooled_connection_that_the_server_has_closed_is_not_used(postgres_url: str) -> None:
    ours, other = Database(postgres_url), Database(postgres_url)
    with ours.read() as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    with other.write() as session:
        assert session.scalar(text("SELECT pg_terminate_backend(:pid, 60000)"), {"pid": pid})  # returns once it is gone
    with ours.read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != pid
    for database in (ours, other):
        database.close()


@pytest.mark.postgres
def test_the_index_of_what_is_ready_holds_nothing_else_on_postgresql(postgres_url: str) -> None:
    upgrade(postgres_url)
    database = Database(postgres_url)
    with database.read() as session:
        made = session.scalar(text("SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_stages_ready'"))
    assert made is not None
    assert "WHERE ((status)::text = 'ready'::text)" in made
    database.close()
