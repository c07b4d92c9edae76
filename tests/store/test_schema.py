from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from engine.errors import NotFound, Refused, Unreachable
from engine.plan.stage import Needs, Plan, Resources, Stage
from engine.settings import Settings
from engine.store import queue, runs, schema
from engine.store.session import Database, open_database
from engine.store.tables import METADATA


def test_the_migrations_lead_to_exactly_the_tables_we_map(db: Database) -> None:
    assert schema.check(db.url) == []
    with db.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) == {*METADATA.tables, "alembic_version"}


def test_the_newest_revision_is_the_one_the_code_asks_for() -> None:
    assert schema.known_revisions()[0] == schema.HEAD


def test_the_revisions_ship_inside_the_package() -> None:
    names = [entry.name for entry in files("migrations").joinpath("versions").iterdir()]
    assert len([name for name in names if name.endswith(".py") and name[0].isdigit()]) == len(schema.known_revisions())


def test_down_to_nothing_and_up_again(db: Database) -> None:
    schema.downgrade(db.url, "base")
    assert schema.current(db.url) is None
    with db.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}

    schema.upgrade(db.url)
    assert schema.current(db.url) == schema.HEAD
    assert schema.check(db.url) == []


def test_a_column_that_nobody_maps_is_drift(db: Database) -> None:
    with db.write() as session:
        session.execute(text("ALTER TABLE runs ADD COLUMN mood VARCHAR(10)"))
    assert any("mood" in line for line in schema.check(db.url))


def test_a_missing_column_is_drift(db: Database) -> None:
    with db.write() as session:
        session.execute(text("ALTER TABLE runs DROP COLUMN notes"))
    assert any("notes" in line for line in schema.check(db.url))


def test_metrics_are_clustered_by_series_and_step_on_sqlite(settings: Settings) -> None:
    open_database(settings)
    with sqlite3.connect(settings.home / "rlx.db") as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'metrics'").fetchone()
    assert "WITHOUT ROWID" in sql


def test_opening_the_embedded_default_makes_it(settings: Settings) -> None:
    database = open_database(settings)
    assert schema.current(database.url) == schema.HEAD


def test_opening_without_making_refuses_what_is_not_there(settings: Settings) -> None:
    with pytest.raises(NotFound, match="there is no store"):
        open_database(settings, create=False)
    assert not (settings.home / "rlx.db").exists()


def test_many_first_starts_at_once_make_one_store(settings: Settings) -> None:
    with ThreadPoolExecutor(6) as pool:
        databases = list(pool.map(lambda _: open_database(settings), range(6)))
    for database in databases:
        with database.read() as session:
            assert session.scalar(text("SELECT count(*) FROM runs")) == 0
    assert schema.check(settings.database_url) == []


@pytest.mark.postgres
def test_a_server_without_tables_is_refused_with_the_command_that_makes_them(postgres_url: str) -> None:
    with pytest.raises(Refused, match="rlx db upgrade"):
        open_database(postgres_url)
    schema.upgrade(postgres_url)
    assert schema.current(open_database(postgres_url).url) == schema.HEAD


def test_a_store_of_a_newer_rlx_is_refused(db: Database) -> None:
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Refused, match="a newer rlx"):
        open_database(db.url)
    with pytest.raises(Refused, match="a newer rlx"):
        schema.upgrade(db.url)


def test_looking_at_an_absent_store_leaves_no_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'absent.db'}"
    assert schema.current(url) is None
    assert schema.check(url) == ["there are no tables"]
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.parametrize("url", ["no url", "sqlite://", "mysql://root@localhost/x"])
def test_a_url_that_leads_nowhere_says_so(url: str) -> None:
    with pytest.raises(Unreachable):
        open_database(url)


def test_a_server_that_does_not_answer_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        open_database("postgresql://nobody@127.0.0.1:1/nothing")


def test_a_file_that_is_no_database_says_so(settings: Settings) -> None:
    (settings.home / "rlx.db").write_text("this is a letter to the editor, not a database\n" * 100)
    with pytest.raises(Unreachable, match="not SQLite"):
        open_database(settings)


def test_what_waits_gets_its_needs_and_its_user_when_the_schema_comes_up(db: Database) -> None:
    plan = Plan("old", 0, (Stage("big", "t", "t:t", (), resources=Resources(gpus=4, slots=2)),))
    with db.write() as session:
        submission = runs.Submission(source="", resolved={}, user="ann")
        runs.submit(session, plan, submission, now=datetime(2026, 3, 1, tzinfo=UTC))
    schema.downgrade(db.url, "0001")
    db.close()
    schema.upgrade(db.url)

    assert schema.check(db.url) == []
    with db.read() as session:
        (waiting,) = queue.ready(session, queues=["default"], now=datetime(2026, 3, 2, tzinfo=UTC))
    assert (waiting.name, waiting.user, waiting.needs) == ("big", "ann", Needs(2, 4))
