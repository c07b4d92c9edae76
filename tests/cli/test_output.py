"""Tables, JSON and text as they reach a pipe, a narrow terminal, and a terminal that model output would steer."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from engine.cli import output
from engine.cli.output import Column

COLUMNS = [
    Column("RUN", lambda row: row["run"], flexible=True),
    Column("STATUS", lambda row: row["status"], coloured=True),
    Column("BEST", lambda row: row["best"], right=True),
]
ROWS = [
    {"run": "best-lang-1", "status": "succeeded", "best": 0.9},
    {"run": "twenty-questions-12", "status": "failed", "best": None},
]


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(output.shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))


def test_a_table_in_a_pipe_is_plain_and_whole(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    output.table(COLUMNS, ROWS)
    assert capsys.readouterr().out == (
        "RUN                  STATUS     BEST\n"
        "best-lang-1          succeeded   0.9\n"
        "twenty-questions-12  failed        -\n"
    )


def test_a_narrow_terminal_cuts_flexible_columns_then_drops_the_last(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal(monkeypatch, 31)
    output.table(COLUMNS, ROWS)
    first = capsys.readouterr().out.splitlines()
    assert first[2].startswith("twenty-quest")
    assert "…" in first[2]
    assert all(len(line) <= 31 for line in first)
    assert "BEST" in first[0]

    terminal(monkeypatch, 24)
    output.table(COLUMNS, ROWS)
    second = capsys.readouterr().out.splitlines()
    assert "BEST" not in second[0]
    assert "STATUS" in second[0]


def test_colours_follow_no_color_then_force_color_then_the_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    assert output.style("x", "red") == "x"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert output.style("x", "red") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.style("x", "red") == "x"


def test_what_a_model_wrote_cannot_steer_the_terminal():
    assert output.printable("a\x1b]0;owned\x07b\u202ec\nd\té") == "a\\x1b]0;owned\\x07b\\u202ec\nd\té"
    assert output.one_line("a\nb\x1b") == "a⏎b\\x1b"


def test_json_knows_times_ids_and_what_is_not_finite(capsys):
    output.answer_json([{"at": datetime(2026, 3, 1, 12, tzinfo=UTC), "score": float("nan"), "text": "ü", "n": (1, 2)}])
    text = capsys.readouterr().out
    assert json.loads(text) == [{"at": "2026-03-01T12:00:00+00:00", "score": None, "text": "ü", "n": [1, 2]}]
    assert "ü" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.4, "0.4s"), (41, "41s"), (185, "3m 05s"), (7805, "2h 10m"), (273_600, "3d 4h"), (None, "-"), (59.7, "1m 00s")],
)
def test_durations(value, shown):
    assert output.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.123456, "0.1235"), (1.0, "1.0"), (12345.0, "12345"), (1e-7, "1e-07"), (float("inf"), "-")]
)
def test_numbers(value, shown):
    assert output.number(value) == shown


def test_times_ago():
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert [output.ago(now - timedelta(seconds=s), now) for s in (0, 30, 200, 8000, 200_000)] == [
        "just now",
        "30s ago",
        "3m ago",
        "2h ago",
        "2d ago",
    ]
    assert output.ago(None, now) == "-"


def test_wide_characters_take_two_places(capsys):
    output.table([Column("A", lambda row: row["a"]), Column("B", lambda row: row["b"])], [{"a": "日本", "b": "x"}])
    assert capsys.readouterr().out.splitlines()[1] == "日本  x"
