"""From an ending to its outcome: the causes of DESIGN section 6, and what each asks the user to do."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engine.errors import Cause, DataError, DiskError
from engine.runtime import autopsy


def test_an_exception_becomes_an_outcome_with_a_next_step() -> None:
    outcome = autopsy.of_exception(DataError("items.csv:2: no answer"))
    assert (outcome.kind, outcome.cause, outcome.error) == ("failed", Cause.DATA_ERROR, "items.csv:2: no answer")
    assert outcome.detail["next"] == autopsy.NEXT_STEP[Cause.DATA_ERROR]
    assert outcome.detail["chain"] is None


def test_the_traceback_is_kept() -> None:
    def broken_function() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        broken_function()
    outcome = autopsy.of_exception(caught.value)
    assert outcome.error == "ValueError: no"
    assert "broken_function" in outcome.detail["traceback"]


def test_what_led_to_an_error_is_named() -> None:
    error = DiskError("the checkpoint could not be written")
    error.__cause__ = OSError(28, "No space left on device")
    outcome = autopsy.of_exception(error)
    assert outcome.detail["chain"] == [{"type": "OSError", "message": "[Errno 28] No space left on device"}]


@pytest.mark.parametrize(
    ("status", "out_of_memory", "last_words", "kind", "cause", "word"),
    [
        (-signal.SIGKILL, False, "", "failed", Cause.LOST, "SIGKILL"),
        (-signal.SIGKILL, True, "", "failed", Cause.OOM, "memory"),
        (-signal.SIGKILL, False, "CUDA out of memory", "failed", Cause.LOST, "SIGKILL"),
        (-signal.SIGSEGV, False, "", "failed", Cause.INTERNAL, "SIGSEGV"),
        (-signal.SIGBUS, False, "", "failed", Cause.DISK, "/dev/shm"),
        (-signal.SIGABRT, False, "", "failed", Cause.INTERNAL, "SIGABRT"),
        (-signal.SIGABRT, False, "what():  std::bad_alloc", "failed", Cause.OOM, "SIGABRT"),
        (-signal.SIGABRT, True, "", "failed", Cause.OOM, "memory"),
        (-signal.SIGXFSZ, False, "", "failed", Cause.DISK, "ulimit -f"),
        (-signal.SIGXCPU, False, "", "failed", Cause.HANG, "CPU time"),
        (-signal.SIGHUP, False, "", "failed", Cause.LOST, "SIGHUP"),
        (-signal.SIGILL, False, "", "failed", Cause.IMPORT, "another processor"),
        (-40, False, "", "failed", Cause.INTERNAL, "signal 40"),
        (-signal.SIGTERM, False, "", "stopped", None, ""),
        (70, False, "OSError: [Errno 28] No space left on device", "failed", Cause.DISK, "status 70"),
        (3, False, "", "failed", Cause.INTERNAL, "status 3"),
        (0, False, "", "failed", Cause.INTERNAL, "no outcome"),
    ],
)
def test_a_process_that_left_without_a_word(
    status: int, out_of_memory: bool, last_words: str, kind: str, cause: Cause | None, word: str
) -> None:
    outcome = autopsy.of_status(status, out_of_memory=out_of_memory, last_words=last_words)
    assert (outcome.kind, outcome.cause) == (kind, cause)
    assert word in outcome.error


def test_every_cause_has_a_next_step() -> None:
    assert set(autopsy.NEXT_STEP) == set(Cause)


def test_a_place_that_is_gone_is_not_full(tmp_path: Path) -> None:
    assert not autopsy.is_full(tmp_path)
    assert not autopsy.is_full(tmp_path / "gone")


@pytest.mark.parametrize("name", ["memory.events", "memory/memory.oom_control"])
def test_kills_for_memory_are_counted_by_the_container_and_else_by_the_machine(tmp_path: Path, name: str) -> None:
    machine = tmp_path / "vmstat"
    machine.write_text("oom_kill_count 9\noom_kill 7\n")
    assert autopsy.kills_for_memory(tmp_path, machine) == 7
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("under_oom 0\noom 4\noom_kill 3\n")
    assert autopsy.kills_for_memory(tmp_path, machine) == 3
    assert autopsy.kills_for_memory(tmp_path / "none", tmp_path / "none") == 0
