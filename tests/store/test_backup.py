"""Backups: one moment while others write, checked, and put back whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select, text

from engine.errors import NotFound, Refused, Unreachable
from engine.store import backup, schema, workers
from engine.store.session import Database
from engine.store.tables import METADATA, Event, Metric, Run
from tests.store.walk import Clock, Queue


@pytest.fixture
def idle(queue: Queue) -> Queue:
    """A store with a run and without a live worker."""
    queue.finish(queue.claim(queue.submit("a"), "a"))
    queue.clock.advance(60)
    return queue


def contents(db: Database) -> dict[str, list[str]]:
    """Every row of every table."""
    with db.read() as session:
        return {
            name: sorted(json.dumps([str(value) for value in row]) for row in session.execute(select(table)))
            for name, table in METADATA.tables.items()
        }


def test_there_and_back(idle: Queue, tmp_path: Path) -> None:
    db, file = idle.db, tmp_path / "store.backup"
    before = contents(db)
    made = backup.save(db.url, file)
    assert (made.revision, made.path, made.bytes) == (schema.HEAD, file, file.stat().st_size)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith("backup")] == ["store.backup"]

    idle.submit("a", "b", salt="later")
    assert contents(db) != before
    backup.restore(db.url, file, now=idle.clock(), replace=True)
    assert contents(db) == before
    assert schema.check(db.url) == []
    run = idle.submit("a", salt="after")  # counters go on where the backup was
    assert (run.handle, idle.status(run)) == ("best-lang-2", "queued")


def test_a_store_that_is_not_there_yet_takes_a_backup(idle: Queue, tmp_path: Path) -> None:
    if idle.db.engine.dialect.name != "sqlite":
        pytest.skip("a server's database is there")
    file, other = tmp_path / "store.backup", tmp_path / "elsewhere" / "rlx.db"
    backup.save(idle.db.url, file)
    backup.restore(f"sqlite:///{other}", file, now=idle.clock())
    assert contents(Database(f"sqlite:///{other}")) == contents(idle.db)


def test_an_empty_store_needs_no_yes(idle: Queue, tmp_path: Path, postgres_or_sqlite: str) -> None:
    file = tmp_path / "store.backup"
    backup.save(idle.db.url, file)
    schema.upgrade(postgres_or_sqlite)
    backup.restore(postgres_or_sqlite, file, now=idle.clock())
    target = Database(postgres_or_sqlite)
    assert contents(target) == contents(idle.db)
    target.close()


@pytest.fixture
def postgres_or_sqlite(request: pytest.FixtureRequest, db: Database, tmp_path: Path) -> str:
    """Another, empty store on the same kind of database."""
    if db.engine.dialect.name == "sqlite":
        return f"sqlite:///{tmp_path / 'other.db'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def writing(idle: Queue) -> Iterator[threading.Event]:
    """Somebody who writes all the time: an event and two points of one step in each transaction."""
    over, wrote = threading.Event(), threading.Event()

    def write() -> None:
        step = 0
        while not over.is_set():
            step += 1
            with idle.db.write() as session:
                session.execute(insert(Event).values(time=idle.clock(), kind="k", message=str(step), data={}))
                session.execute(insert(Metric).values(series_id=1, step=step, value=1.0, time=0.0))
                session.execute(insert(Metric).values(series_id=2, step=step, value=1.0, time=0.0))
            wrote.set()

    thread = threading.Thread(target=write)
    thread.start()
    assert wrote.wait(60)
    yield wrote
    over.set()
    thread.join()


def test_it_is_one_moment_while_others_write(
    idle: Queue, writing: threading.Event, tmp_path: Path, postgres_or_sqlite: str
) -> None:
    seen = []
    for n in range(4):
        writing.clear()
        file = tmp_path / f"{n}.backup"
        backup.save(idle.db.url, file)
        assert writing.wait(60)  # they were not kept from writing
        backup.restore(postgres_or_sqlite, file, now=idle.clock(), replace=True)
        target = Database(postgres_or_sqlite)
        with target.read() as session:
            events = session.scalar(select(func.count()).where(Event.kind == "k"))
            one, two = (session.scalar(select(func.count()).where(Metric.series_id == series)) for series in (1, 2))
        target.close()
        assert events == one == two
        seen.append(events)
    assert seen == sorted(set(seen))  # each a later moment


def test_a_store_with_content_is_not_replaced_unasked(idle: Queue, tmp_path: Path) -> None:
    file = tmp_path / "store.backup"
    backup.save(idle.db.url, file)
    before = contents(idle.db)
    with pytest.raises(Refused, match=r"1 run, 1 spec, 1 artifact: say --yes"):
        backup.restore(idle.db.url, file, now=idle.clock())
    assert contents(idle.db) == before


def test_live_workers_are_not_robbed(idle: Queue, tmp_path: Path) -> None:
    file = tmp_path / "store.backup"
    backup.save(idle.db.url, file)
    with idle.db.write() as session:
        workers.heartbeat(session, idle.worker, now=idle.clock())
    with pytest.raises(Refused, match="w on elsewhere"):
        backup.restore(idle.db.url, file, now=idle.clock(), replace=True)


def test_a_file_that_exists_is_not_overwritten_unasked(idle: Queue, tmp_path: Path) -> None:
    file = tmp_path / "store.backup"
    file.write_text("mine")
    with pytest.raises(Refused, match="--yes"):
        backup.save(idle.db.url, file)
    assert file.read_text() == "mine"
    backup.save(idle.db.url, file, replace=True)
    assert backup.examine(file, idle.db.url).revision == schema.HEAD


def test_what_is_no_backup_of_this_database_is_refused(idle: Queue, tmp_path: Path) -> None:
    file = tmp_path / "store.backup"
    with pytest.raises(NotFound):
        backup.restore(idle.db.url, file, now=idle.clock())
    file.write_text("a letter to the editor")
    with pytest.raises(Refused, match="is no backup of this database"):
        backup.restore(idle.db.url, file, now=idle.clock(), replace=True)


def test_a_damaged_backup_replaces_nothing(idle: Queue, tmp_path: Path) -> None:
    file = tmp_path / "store.backup"
    for n in range(200):
        idle.submit("a", salt=str(n))
    made = backup.save(idle.db.url, file)
    before = contents(idle.db)
    with file.open("r+b") as handle:
        if idle.db.engine.dialect.name == "sqlite":
            handle.seek(made.bytes // 2)
            handle.write(b"\xa5" * 20_000)
        else:
            handle.truncate(made.bytes // 2)
    with pytest.raises(Refused):
        backup.restore(idle.db.url, file, now=idle.clock(), replace=True)
    assert contents(idle.db) == before


def test_a_backup_of_a_newer_rlx_is_refused(idle: Queue, tmp_path: Path) -> None:
    file = tmp_path / "store.backup"
    with idle.db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Refused, match="a newer rlx"):
        backup.save(idle.db.url, file)
    assert not file.exists()


def test_an_older_backup_brings_its_revision_along(idle: Queue, tmp_path: Path) -> None:
    older = schema.known_revisions()[1]
    file = tmp_path / "store.backup"
    schema.downgrade(idle.db.url, older)
    backup.save(idle.db.url, file)
    schema.upgrade(idle.db.url)
    assert backup.restore(idle.db.url, file, now=idle.clock(), replace=True).revision == older
    assert schema.current(idle.db.url) == older
    schema.upgrade(idle.db.url)
    assert schema.check(idle.db.url) == []
    with idle.db.read() as session:
        assert session.scalar(select(func.count()).select_from(Run)) == 1


def test_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        backup.save(f"sqlite:///{tmp_path / 'none.db'}", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.postgres
def test_without_the_tools_of_postgresql_it_says_so(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.upgrade(postgres_url)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match="pg_dump is not on the PATH"):
        backup.save(postgres_url, tmp_path / "file")


def test_the_password_is_not_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "pg_dump"
    tool.write_text('#!/bin/sh\necho "$@" > "$0.line"\necho "$PGPASSWORD" > "$0.password"\nexit 1\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(Refused, match="pg_dump failed"):
        backup._pg("pg_dump", "postgresql+psycopg://me:hunter2@host:5433/rlx?sslmode=require", "--format=custom")
    line = (tmp_path / "pg_dump.line").read_text()
    assert "hunter2" not in line
    assert "--dbname=postgresql://me@host:5433/rlx?sslmode=require" in line
    assert (tmp_path / "pg_dump.password").read_text() == "hunter2\n"


@pytest.mark.postgres
def test_a_server_that_is_away_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        backup._pg("pg_dump", "postgresql://nobody@127.0.0.1:1/nothing", "--schema-only")


def test_damage_is_found(idle: Queue, clock: Clock) -> None:
    assert backup.damage(idle.db.url) == []
    if idle.db.engine.dialect.name != "sqlite":
        return
    file = Path(idle.db.url.removeprefix("sqlite:///"))
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("DELETE FROM runs")  # without foreign keys: the stages stay behind
    assert "stages refers to a row of runs that is not there" in backup.damage(idle.db.url)


def test_killed_while_it_restores_it_leaves_all_or_nothing(idle: Queue, tmp_path: Path) -> None:
    if idle.db.engine.dialect.name != "sqlite":
        pytest.skip("pg_restore works in one transaction")
    db, file = idle.db, tmp_path / "store.backup"
    for n in range(50):
        idle.submit("a", salt=str(n))
    before = contents(db)
    backup.save(db.url, file)
    for n in range(50):
        idle.submit("a", salt=f"later {n}")
    after = contents(db)
    target = Path(db.url.removeprefix("sqlite:///"))
    pid = os.fork()
    if pid == 0:
        with closing(sqlite3.connect(file)) as reading, closing(sqlite3.connect(target)) as writing:
            reading.backup(writing, pages=5, progress=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert contents(db) == after
    backup.restore(db.url, file, now=idle.clock(), replace=True)
    assert contents(db) == before
