"""From how an attempt's process ended to its outcome: a cause code, a message, and what to do next."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Mapping
from pathlib import Path

from engine.errors import Cause, RlxError, describe
from engine.store.stages import Outcome

NEXT_STEP: Mapping[Cause, str] = {
    Cause.OOM: "It ran out of memory: a smaller batch, fewer candidates or a lower precision needs less.",
    Cause.HANG: "It was not through in its time: the stacks are in `rlx logs`, `hardware.timeout` sets the limit.",
    Cause.REWARD_ERROR: "Correct the function in the spec, run `rlx validate`, and submit again.",
    Cause.DATA_ERROR: "Correct the dataset at the place named, and submit again.",
    Cause.SPEC_ERROR: "Correct the spec, run `rlx validate`, and submit again.",
    Cause.SERVICE_DOWN: "Check that what it names is up, then `rlx resume`.",
    Cause.DISK: "Free some space, then `rlx resume`.",
    Cause.LOST: "`rlx resume` goes on from the last checkpoint.",
    Cause.PREEMPTED: "`rlx resume` goes on from the last checkpoint.",
    Cause.IMPORT: "Install what is missing where the worker runs, then `rlx resume`.",
    Cause.INTERNAL: "The traceback is in `rlx logs`; `rlx resume` goes on from the last checkpoint.",
}
"""What to do about a failure."""

_LONGEST_TRACEBACK = 20_000


def failed(cause: Cause, error: str, **detail: str) -> Outcome:
    """A failed attempt, with its suggested next step."""
    return Outcome.failed(cause, error, detail={**detail, "next": NEXT_STEP[cause]})


def of_exception(error: BaseException) -> Outcome:
    """The outcome of an attempt that an exception ended."""
    told = describe(error)
    message = told["message"] if isinstance(error, RlxError) else f"{told['type']}: {told['message']}"
    text = "".join(traceback.format_exception(error))
    return failed(Cause(told["cause"]), message, type=told["type"], traceback=text[-_LONGEST_TRACEBACK:])


def of_status(status: int, *, out_of_memory: bool) -> Outcome:
    """The outcome of a process that left without a word; `status` is negative for the signal that ended it."""
    if status == -signal.SIGTERM:
        return Outcome.stopped()
    if status == -signal.SIGKILL:
        if out_of_memory:
            return failed(Cause.OOM, "the kernel killed the stage's process: the machine's memory ran out")
        return failed(Cause.LOST, "the stage's process was killed (SIGKILL)")
    if status < 0:
        name = signal.Signals(-status).name
        return failed(Cause.INTERNAL, f"the stage's process crashed with {name}; the log has its last stack")
    return failed(Cause.INTERNAL, f"the stage's process ended with status {status} and left no outcome")


def kills_for_memory() -> int:
    """How often the kernel has killed something of this container for want of memory; 0 where it does not say."""
    try:
        lines = Path("/sys/fs/cgroup/memory.events").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
