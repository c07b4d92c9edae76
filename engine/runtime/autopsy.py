"""From how an attempt's process ended to its outcome: a cause code, a message, and what to do next.

Which cause an exception has is told by `causes`; who takes the stacks of a stage that hangs is the workers' business.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from engine.errors import Cause, RlxError
from engine.runtime import causes
from engine.store.stages import Outcome

NEXT_STEP: Mapping[Cause, str] = {
    Cause.OOM: "It ran out of memory: a smaller batch, fewer candidates or a lower precision needs less.",
    Cause.HANG: "See in `rlx logs` where it stood; `hardware.timeout` and `hardware.stall_timeout` set the limits.",
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
_LINKS = 8
"""How many exceptions of a chain are kept beside the traceback."""
_NO_ROOM = 64 << 10
"""Bytes: a disk with less than this left is full."""

_SIGNALS: Mapping[int, tuple[Cause, str]] = {
    signal.SIGKILL: (Cause.LOST, "was killed (SIGKILL)"),
    signal.SIGHUP: (Cause.LOST, "was ended by SIGHUP: the terminal or the session that it belonged to is gone"),
    signal.SIGBUS: (
        Cause.DISK,
        "crashed with SIGBUS: a mapped file has no room left behind it (the disk, or /dev/shm), or was cut short",
    ),
    signal.SIGXFSZ: (Cause.DISK, "wrote a file beyond the size that is allowed (SIGXFSZ, `ulimit -f`)"),
    signal.SIGXCPU: (Cause.HANG, "used up the CPU time that is allowed (SIGXCPU, `ulimit -t`)"),
    signal.SIGILL: (Cause.IMPORT, "crashed with SIGILL: a library was built for another processor"),
}
"""What a signal that ended a process says by itself; any other is a crash."""


def failed(cause: Cause, error: str, **detail: Any) -> Outcome:
    """A failed attempt, with its suggested next step."""
    return Outcome.failed(cause, error, detail={**detail, "next": NEXT_STEP[cause]})


def of_exception(error: BaseException) -> Outcome:
    """The outcome of an attempt that an exception ended."""
    cause = causes.of_exception(error)
    links = [{"type": type(one).__name__, "message": _first_line(one)} for one in islice(causes.chain(error), _LINKS)]
    message = str(error) if isinstance(error, RlxError) else f"{type(error).__name__}: {error}"
    text = "".join(traceback.format_exception(error))
    return failed(
        cause, message, type=type(error).__name__, traceback=text[-_LONGEST_TRACEBACK:], chain=links[1:] or None
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")[:500]


def of_status(status: int, *, out_of_memory: bool, last_words: str = "", place: Path | None = None) -> Outcome:
    """The outcome of a process that left without a word; `status` is negative for the signal that ended it.

    `last_words` is the end of its log; `place` a folder that it wrote to, whose disk may have been full.
    """
    if status == -signal.SIGTERM:
        return Outcome.stopped()
    killed = -status if status < 0 else None
    if out_of_memory and killed in (signal.SIGKILL, signal.SIGABRT):
        return failed(Cause.OOM, "the kernel killed the stage's process: the machine's memory ran out")
    if killed is not None and killed in _SIGNALS:
        cause, what = _SIGNALS[killed]
        return failed(cause, f"the stage's process {what}")
    cause = causes.of_text(last_words) or (Cause.DISK if place is not None and is_full(place) else Cause.INTERNAL)
    if killed is not None:
        return failed(cause, f"the stage's process crashed with {_name(killed)}; the log has its last stack")
    return failed(cause, f"the stage's process ended with status {status} and left no outcome; see the end of its log")


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # the real-time ones have no names


def is_full(place: Path) -> bool:
    """Whether the disk below a folder has no room left, or no inodes."""
    try:
        disk = os.statvfs(place)
    except OSError:
        return False  # gone with its disk: not for us to tell
    return disk.f_bavail * disk.f_frsize < _NO_ROOM or (disk.f_files > 0 and disk.f_favail == 0)


_COUNTERS = ("memory.events", "memory/memory.oom_control")
"""Where the two versions of control groups count kills, below /sys/fs/cgroup as a container sees it."""


def kills_for_memory(groups: Path = Path("/sys/fs/cgroup"), machine: Path = Path("/proc/vmstat")) -> int:
    """How often the kernel has killed something of this container (else of this machine) for want of memory."""
    for counter in (*(groups / name for name in _COUNTERS), machine):
        try:
            lines = counter.read_text().splitlines()
        except OSError:
            continue
        found = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
        if found:
            return sum(found)
    return 0
