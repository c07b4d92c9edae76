"""How values read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dashboard import wording
from engine.errors import Cause
from engine.store.transitions import AttemptStatus, RunStatus, StageStatus


@pytest.mark.parametrize(
    "seconds, text",
    [
        (None, "–"),
        (0.2, "0 s"),
        (41, "41 s"),
        (59.6, "1 m 00 s"),
        (185, "3 m 05 s"),
        (7800, "2 h 10 m"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    "count, text",
    [(None, "–"), (0, "0"), (812, "812"), (9_999, "9,999"), (12_400, "12.4 k"), (3_151_000, "3.15 M"), (2e9, "2 G")],
)
def test_counts(count: float | None, text: str) -> None:
    assert wording.count(count) == text


@pytest.mark.parametrize(
    "number, text", [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_843_212, "1.8 MiB"), (3 * 2**30, "3.0 GiB")]
)
def test_sizes(number: int, text: str) -> None:
    assert wording.size(number) == text


def test_scores_line_up_and_differences_have_a_sign() -> None:
    assert wording.score(1) == "1.000"
    assert wording.score(float("nan")) == "–"
    assert wording.interval(0.94, 0.88, 0.98) == "0.940 [0.880, 0.980]"
    assert wording.signed(-0.05) == "−0.050"
    assert wording.signed(0.05) == "+0.050"
    assert wording.p_value(0.0004) == "p < 0.001"


def test_ago() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert wording.ago(now - timedelta(seconds=59), now) == "just now"
    assert wording.ago(now - timedelta(minutes=7, seconds=50), now) == "7 min ago"
    assert wording.ago(now - timedelta(hours=47), now) == "1 d ago"


def test_values_read_as_yaml() -> None:
    assert wording.value({"a": None, "b": [True, 1.0, "x"]}) == "{a: null, b: [true, 1, x]}"


def test_the_end_of_a_text_is_what_was_said_last() -> None:
    assert wording.ending("short\ntext") == "short text"
    assert wording.ending("a" * 500 + "\nThe best is Rust.", limit=17) == "…The best is Rust."


@pytest.mark.parametrize(
    "hostile", ["**b**", "[a](javascript:x)", "<b>", "$x$", ":red[x]", "`c`", "# h", "- a", "1. a"]
)
def test_plain_text_has_no_markdown_left_to_hear(hostile: str) -> None:
    escaped = wording.plain(hostile)

    # Every punctuation mark that could start something is escaped, and taking the escapes away gives the text back.
    assert escaped.replace("\\", "") == hostile
    for place, character in enumerate(escaped):
        if character in "*[]()<>$:`#-.":
            assert escaped[place - 1] == "\\"


def test_time_spent_the_most_first_and_no_crumbs() -> None:
    spent = {"start_up": 4.0, "training": 95.6, "saving": 0.4, "lost": 0.0}
    assert wording.times(spent) == "training 1 m 36 s (96 %)  ·  start-up 4 s (4 %)"
    assert wording.times({}) == ""
    assert wording.times({"training": 0.0}) == ""


def test_every_status_and_cause_has_its_words() -> None:
    for status in (*RunStatus, *StageStatus, *AttemptStatus):
        assert status.value in wording.LOOKS
    assert set(wording.STATUSES) == {status.value for status in RunStatus}
    assert set(wording.ADVICE) == {cause.value for cause in Cause}
    assert set(wording.ADVICE) >= wording.MENDED_BY_RESUME
