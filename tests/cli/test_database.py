"""`db`: upgrade, downgrade, current, check, backup and restore, on both databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from engine.cli import app as edge
from engine.cli import places
from engine.plan.stage import Plan, Stage
from engine.store import runs, schema, workers
from engine.store.session import Database
from tests.cli.conftest import Answer


@pytest.fixture
def rlx(
    db: Database, settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """The command line on a store of either kind."""
    for name, value in {**settings.environment(), "RLX_DATABASE_URL": db.url, "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    places.the_settings.cache_clear()

    def run(*line: str) -> Answer:
        capsys.readouterr()
        code = edge.run(list(line))
        shown = capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    yield run
    places.the_settings.cache_clear()


def submit(db: Database, clock, name: str = "best_lang") -> None:
    with db.write() as session:
        plan = Plan(name, 0, (Stage("train", "test.train", "tests:stage", ()),))
        runs.submit(session, plan, runs.Submission(source="v", resolved={}), now=clock())


def handles(rlx) -> list[str]:
    return sorted(row["handle"] for row in rlx("ls", "--json").data)


def test_there_and_back(rlx, db, clock, tmp_path):
    submit(db, clock)
    file = tmp_path / "store.backup"
    made = rlx("db", "backup", str(file))
    assert (made.code, made.out) == (0, "")
    assert f"Backed up revision {schema.HEAD}" in made.err
    submit(db, clock, "later")
    assert handles(rlx) == ["best-lang-1", "later-1"]

    refused = rlx("db", "restore", str(file))
    assert refused.code == 5
    assert "2 runs" in refused.err
    assert "--yes" in refused.err
    assert handles(rlx) == ["best-lang-1", "later-1"]

    assert rlx("db", "restore", str(file), "--yes").code == 0
    assert handles(rlx) == ["best-lang-1"]


def test_backup_as_json_and_over_an_older_one(rlx, db, clock, tmp_path):
    file = tmp_path / "store.backup"
    data = rlx("db", "backup", str(file), "--json").data
    assert data == {"path": str(file), "revision": schema.HEAD, "bytes": file.stat().st_size}
    assert rlx("db", "backup", str(file)).code == 5
    assert rlx("db", "backup", str(file), "--yes").code == 0


def test_restoring_is_refused_while_a_worker_is_alive(rlx, db, clock, tmp_path, monkeypatch):
    file = tmp_path / "store.backup"
    assert rlx("db", "backup", str(file)).code == 0
    with db.write() as session:
        workers.register(
            session, name="w1", host="there", pid=1, pid_started=None, queues=["default"], slots=1, now=clock()
        )
    monkeypatch.setattr("engine.clock.utc_now", clock)
    answer = rlx("db", "restore", str(file), "--yes")
    assert answer.code == 5
    assert "w1 on there" in answer.err
    clock.advance(60)
    assert rlx("db", "restore", str(file), "--yes").code == 0


def test_what_is_no_backup(rlx, tmp_path):
    assert rlx("db", "restore", str(tmp_path / "none")).code == 3
    (tmp_path / "letter").write_text("dear editor")
    assert rlx("db", "restore", str(tmp_path / "letter")).code == 5
    assert rlx("db", "backup", str(tmp_path)).code == 2


def test_down_and_up_and_where_it_is(rlx, db):
    older = schema.known_revisions()[1]
    assert rlx("db", "downgrade", older, "--yes").code == 0
    assert rlx("db", "current", "--json").data["revision"] == older
    drift = rlx("db", "check")
    assert drift.code == 5
    assert "rlx db upgrade" in drift.err
    assert rlx("db", "check", "--json").data["drift"]
    assert rlx("db", "upgrade").code == 0
    assert rlx("db", "current").out == f"{schema.HEAD}\n"
    whole = rlx("db", "check", "--json")
    assert (whole.code, whole.data) == (0, {"drift": [], "damage": []})


def test_going_down_asks_and_nobody_answers(rlx, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert rlx("db", "downgrade", "base").code == 5
    assert rlx("db", "current").out == f"{schema.HEAD}\n"


def test_damage_is_told(rlx, db, clock, settings):
    if db.engine.dialect.name != "sqlite":
        pytest.skip("a server looks after its own files")
    submit(db, clock)
    with closing(sqlite3.connect(settings.home / "rlx.db")) as connection, connection:
        connection.execute("DELETE FROM runs")
    answer = rlx("db", "check")
    assert answer.code == 5
    assert "stages refers to a row of runs that is not there" in answer.err
    assert "rlx db restore" in answer.err
    assert rlx("db", "check", "--json").data["damage"]
