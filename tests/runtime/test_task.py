"""What goes into a stage's process, and what is left of it, survives the way through files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import Cause
from engine.runtime.stopwatch import Stopwatch, look
from engine.runtime.task import Task, device_names, log_tail
from engine.store.artifact_store import StoredArtifact
from engine.store.stages import Outcome

pytestmark = pytest.mark.parametrize("db", ["sqlite"], indirect=True)


def test_a_task_is_read_as_it_was_written(claim: Callable[..., Task]) -> None:
    task = claim(config={"a": [1, {"b": None}]}, extra={"n": 0.5})
    assert Task.read(task.path) == task


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.succeeded(StoredArtifact("ab", "/x", "kind", 3, 1)),
        Outcome.failed(Cause.REWARD_ERROR, "score_fn, line 3: ü", detail={"type": "FunctionError"}),
        Outcome.stopped(log_tail="…"),
    ],
)
def test_an_outcome_is_read_as_it_was_written(claim: Callable[..., Task], outcome: Outcome) -> None:
    task = claim()
    assert task.read_outcome() is None
    task.write_outcome(outcome)
    assert task.read_outcome() == outcome


def test_an_outcome_whose_writer_was_cut_off_is_none(claim: Callable[..., Task]) -> None:
    task = claim()
    before = task.path.read_bytes()
    task.write_outcome(Outcome.stopped())
    whole = task.path.read_bytes()
    for end in range(len(before), len(whole)):
        task.path.write_bytes(whole[:end])
        assert task.read_outcome() is None
        assert Task.read(task.path) == task


def test_what_happens_on_the_stopwatch_s_page_does_not_touch_the_task(claim: Callable[..., Task]) -> None:
    task = claim()
    watch = Stopwatch(task.path)
    watch.beat()
    task.write_outcome(Outcome.stopped())
    watch.beat()
    readings = look(task.path)
    assert readings is not None
    assert readings.beats == 2
    assert Task.read(task.path) == task
    assert task.read_outcome() == Outcome.stopped()


def test_nothing_is_left_of_what_was_cleared(claim: Callable[..., Task]) -> None:
    task = claim()
    (task.output_dir / "half").write_text("half")
    for _ in range(2):
        task.clear()
        assert list(task.settings.work.iterdir()) == []
    with pytest.raises(FileNotFoundError):  # its process was frozen, and wakes up
        task.write_outcome(Outcome.stopped())
    assert list(task.settings.work.iterdir()) == []


def test_attempts_share_checkpoints_and_nothing_else(claim: Callable[..., Task]) -> None:
    first = claim()
    second = claim(after=first)
    assert first.checkpoints == second.checkpoints
    assert first.path != second.path
    assert first.output_dir != second.output_dir
    assert [task.log.name for task in (first, second)] == ["train-1.log", "train-2.log"]


def test_a_log_s_tail_begins_with_a_whole_line(tmp_path: Path, db: object) -> None:
    path = tmp_path / "log"
    assert log_tail(path) == ""
    path.write_text("first\nsecond\nthird\n")
    assert log_tail(path) == "first\nsecond\nthird\n"
    assert log_tail(path, size=10) == "third\n"


def test_what_was_not_lent_is_not_visible(db: object) -> None:
    assert device_names(()) == ""
    assert device_names(("2", "5")) == "2,5"
