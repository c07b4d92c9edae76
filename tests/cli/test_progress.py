"""How progress is told: pace, plain lines, and the state of a bar."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from engine.cli.progress import LiveReporter, Pace, PlainReporter, Snapshot, StageView, bar, reporter_for

START = datetime(2026, 3, 1, tzinfo=UTC)


class Ticks:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(*stages: StageView, status: str = "running", score: float | None = None) -> Snapshot:
    return Snapshot("best-lang-1", status, stages, score)


def test_pace_is_units_a_second_over_the_window():
    pace = Pace(window_s=10)
    for time in range(0, 40, 2):
        pace.add(float(time), time * (1.0 if time < 20 else 3.0))
    # After 20 s the stage makes 3 a second; the slow beginning has left the window.
    assert pace.rate == pytest.approx(3.0)
    assert pace.remaining_s(StageView("train", "running", done=114, total=144)) == pytest.approx(10.0)


def test_pace_starts_afresh_when_an_attempt_resumes_from_an_earlier_step():
    pace = Pace()
    pace.add(0, 0)
    pace.add(10, 50)
    pace.add(20, 40)
    assert pace.rate is None
    pace.add(25, 45)
    assert pace.rate == pytest.approx(1.0)


def test_lines_come_on_changes_and_tenths_and_after_half_a_minute(capsys):
    clock = Ticks()
    reporter = PlainReporter(clock)
    waiting, train = StageView("train", "waiting"), StageView("train", "running", total=100)

    reporter.update(run(waiting))
    reporter.update(run(train))
    for done in (1, 2, 3):
        clock.now += 1
        reporter.update(run(replace(train, done=done)))
    clock.now += 1
    reporter.update(run(replace(train, done=10), score=0.25))
    clock.now += 31
    reporter.update(run(replace(train, done=11)))
    reporter.update(
        run(replace(train, status="succeeded", started_at=START, finished_at=START + timedelta(seconds=41)))
    )

    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "best-lang-1 train: running 0/100",
        "best-lang-1 train: running 10/100",
        "best-lang-1 train: running 11/100",
        "best-lang-1 train: succeeded in 41s",
    ]
    assert "score 0.250" in lines[1]
    assert "left" in lines[1]


def test_a_failed_stage_is_told_with_its_cause_on_one_line(capsys):
    PlainReporter(Ticks()).update(run(StageView("train", "failed", cause="oom", error="no memory\nleft\x1b[2J")))
    assert capsys.readouterr().err == "best-lang-1 train: failed oom: no memory⏎left\\x1b[2J\n"


def test_bars_are_full_pulsing_or_in_between():
    assert bar(StageView("a", "succeeded", done=3, total=9)) == (1.0, 1.0)
    assert bar(StageView("a", "running", done=3, total=9)) == (9, 3)
    assert bar(StageView("a", "running")) == (None, 0.0)
    assert bar(StageView("a", "waiting")) == (1.0, 0.0)


def test_live_bars_survive_markup_in_names_and_notes(capsys):
    reporter = LiveReporter(Ticks())
    reporter.update(run(StageView("[red]train", "running", done=1, total=2, note="[/]oops")))
    reporter.message("[bold]as it is")
    reporter.close()
    shown = capsys.readouterr().err
    assert "[red]train" in shown
    assert "[/]oops" in shown
    assert "[bold]as it is" in shown


def test_a_pipe_gets_lines_and_a_terminal_bars(monkeypatch):
    assert isinstance(reporter_for(Ticks()), PlainReporter)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    live = reporter_for(Ticks())
    live.close()
    assert isinstance(live, LiveReporter)
