"""The edge of the command line: exit codes, streams, broken pipes, and what must never be imported for help."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cli import app as edge
from engine.errors import DataError, FunctionError, NotFound, Problem, Refused, RlxError, SpecError, Unreachable
from engine.store.session import open_database

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "streamlit", "celery", "numpy", "sqlalchemy", "rich", "pydantic")
COMMANDS = [
    *("init", "validate", "schema", "plan", "submit", "ls", "show", "logs", "watch", "samples", "cancel", "resume"),
    *("compare", "eval", "verify-resume", "worker", "specs", "db", "doctor", "dashboard"),
]


def rlx(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RLX_HOME": str(cwd / ".rlx"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command_and_imports_nothing_heavy(tmp_path):
    script = (
        f"import sys; from engine.cli.app import run; run(['--help']); print(*[m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    *text, imported = done.stdout.splitlines()
    assert imported == ""
    listed = {line.split()[0] for line in text if line.startswith("  ")}
    assert set(COMMANDS) <= listed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits(command, capsys):
    assert edge.run([command, "--help"]) == 0
    assert "Usage: rlx" in capsys.readouterr().out


def test_summaries_are_not_cut_off(capsys):
    edge.run(["--help"])
    listing = capsys.readouterr().out.split("Commands:")[1]
    assert "..." not in listing


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpecError("x"), 2),
        (DataError("x"), 2),
        (FunctionError("score_fn", "x"), 2),
        (NotFound("x"), 3),
        (Unreachable("x"), 4),
        (Refused("x"), 5),
        (RlxError("x"), 70),
        (ZeroDivisionError("x"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_earns_its_exit_code_and_shows_no_traceback(error, code, monkeypatch, capsys):
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(edge, "app", broken)
    assert edge.run(["ls"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert ("error:" in shown.err) == (code != 130)


@pytest.mark.parametrize("line", [["--debug", "ls"], ["ls", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(line, monkeypatch, capsys):
    seen = []

    def broken(argv: list[str], **_: object) -> None:
        seen.append(argv)
        raise ZeroDivisionError("x")

    monkeypatch.setattr(edge, "app", broken)
    assert edge.run(line) == 70
    assert "Traceback" in capsys.readouterr().err
    assert seen == [["ls"]]


def test_all_problems_of_a_spec_are_told(monkeypatch, capsys):
    def broken(*_: object, **__: object) -> None:
        raise SpecError([Problem("first", "a"), Problem("second", "b", "gone.yaml", 3, 5)])

    monkeypatch.setattr(edge, "app", broken)
    assert edge.run(["validate"]) == 2
    shown = capsys.readouterr().err
    assert "first" in shown
    assert "gone.yaml:3:5: second" in shown
    assert "2 problems" in shown


def test_a_mistyped_command_is_bad_input_with_the_closest(tmp_path):
    done = rlx("sumbit", cwd=tmp_path)
    assert done.returncode == 2
    assert "'submit'" in done.stderr
    assert done.stdout == ""


def test_a_reader_that_has_had_enough_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", "--help"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 0
    assert done.stderr == ""


def test_version(capsys):
    assert edge.run(["--version"]) == 0
    assert capsys.readouterr().out == "rlx 0.1.0\n"


def test_listing_imports_no_object_mapper_and_leaves_no_log_of_the_database(tmp_path):
    """The run of `rlx ls` that people wait for: it reads with plain queries, and closes the store behind it."""
    open_database(f"sqlite:///{tmp_path / 'rlx.db'}").close()
    heavy = ("sqlalchemy.orm", "sqlalchemy.dialects.postgresql", "alembic", "pydantic", "rich", "engine.store.tables")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "engine.cli", "ls", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RLX_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sqlalchemy" in imported
    assert not imported & set(heavy)
    assert [file.name for file in tmp_path.glob("rlx.db*")] == ["rlx.db"]
