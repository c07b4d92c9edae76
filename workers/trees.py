"""Process trees, as the kernel shows them: who belongs to a stage's process, and ending all of them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Entry:
    """One living process."""

    pid: int
    parent: int
    session: int


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies; ends it at once if it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none escapes to init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def table() -> dict[int, Entry]:
    """Every living process; zombies have ended."""
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if fields[0] not in ("Z", "X"):
            found[int(name)] = Entry(int(name), int(fields[1]), int(fields[3]))
    return found


def members(leader: int) -> set[int]:
    """Living processes in `leader`'s session, and everything below them, itself included where it lives."""
    entries = table()
    found = {pid for pid, entry in entries.items() if entry.session == leader or pid == leader}
    while grown := {pid for pid, entry in entries.items() if entry.parent in found} - found:
        found |= grown
    return found


def children(parent: int) -> set[int]:
    """Living processes whose parent is `parent`."""
    return {pid for pid, entry in table().items() if entry.parent == parent}


def kill_tree(leader: int) -> None:
    """End everything in `leader`'s session and below it. Returns when the kernel shows none of it any more.

    What is in an uninterruptible wait is given a few seconds; the signal is pending on it then.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (alive := members(leader)) and time.monotonic() < deadline:
        for chosen in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: none can start another behind our back
            for pid in alive:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, chosen)
        time.sleep(0.001)


def marked(pid: int, variable: str) -> str | None:
    """The value of an environment variable that the process was started with, None where it has none or hides it."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    for pair in text.split(b"\0"):
        name, _, value = pair.partition(b"=")
        if name == variable.encode():
            return value.decode(errors="replace")
    return None
