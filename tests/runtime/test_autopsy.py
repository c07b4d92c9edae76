"""From an ending to its cause: the codes of DESIGN section 6, and what each asks the user to do."""

from __future__ import annotations

import errno
import signal

import pytest

from engine.errors import Cause, DataError, FunctionError, ModelError, ResumeError, SpecError, Unreachable
from engine.runtime import autopsy


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FunctionError("score_fn", "returned a str", 3, "hello"), Cause.REWARD_ERROR),
        (DataError("items.csv:2"), Cause.DATA_ERROR),
        (SpecError("no such key"), Cause.SPEC_ERROR),
        (ModelError("no such model"), Cause.SPEC_ERROR),
        (Unreachable("no database"), Cause.SERVICE_DOWN),
        (ModuleNotFoundError("No module named 'peft'"), Cause.IMPORT),
        (MemoryError(), Cause.OOM),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), Cause.OOM),
        (OSError(errno.ENOSPC, "No space left on device"), Cause.DISK),
        (ResumeError("damaged"), Cause.INTERNAL),
        (ZeroDivisionError("division by zero"), Cause.INTERNAL),
    ],
)
def test_an_exception_has_a_cause_and_a_next_step(error: Exception, cause: Cause) -> None:
    outcome = autopsy.of_exception(error)
    assert (outcome.kind, outcome.cause) == ("failed", cause)
    assert str(error) in outcome.error
    assert outcome.detail["next"] == autopsy.NEXT_STEP[cause]


def test_the_traceback_is_kept() -> None:
    def broken_function() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        broken_function()
    outcome = autopsy.of_exception(caught.value)
    assert outcome.error == "ValueError: no"
    assert "broken_function" in outcome.detail["traceback"]


@pytest.mark.parametrize(
    ("status", "out_of_memory", "kind", "cause", "word"),
    [
        (-signal.SIGKILL, False, "failed", Cause.LOST, "SIGKILL"),
        (-signal.SIGKILL, True, "failed", Cause.OOM, "memory"),
        (-signal.SIGSEGV, False, "failed", Cause.INTERNAL, "SIGSEGV"),
        (-signal.SIGTERM, False, "stopped", None, ""),
        (3, False, "failed", Cause.INTERNAL, "status 3"),
        (0, False, "failed", Cause.INTERNAL, "no outcome"),
    ],
)
def test_a_process_that_left_without_a_word(
    status: int, out_of_memory: bool, kind: str, cause: Cause | None, word: str
) -> None:
    outcome = autopsy.of_status(status, out_of_memory=out_of_memory)
    assert (outcome.kind, outcome.cause) == (kind, cause)
    assert word in outcome.error


def test_every_cause_has_a_next_step() -> None:
    assert set(autopsy.NEXT_STEP) == set(Cause)
