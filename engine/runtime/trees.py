"""Process trees, as the kernel shows them: who belongs to a stage's process, and ending all of them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.store.processes import process_started

MARK = "RLX_ATTEMPT"
"""Environment variable that a stage's process hands on to whatever it starts; its value names the attempt."""
_LIBC = ctypes.CDLL(None, use_errno=True)
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
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def own_children() -> set[int] | None:
    """Our children, zombies included, at the price of one read; None where the kernel does not list them."""
    found: set[int] = set()
    try:
        for thread in os.listdir("/proc/self/task"):
            found.update(map(int, Path(f"/proc/self/task/{thread}/children").read_text().split()))
    except OSError:
        return None
    return found


def table() -> dict[int, Entry]:
    """Every living process; zombies have ended."""
    found = {}
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if fields[0] not in ("Z", "X"):
            found[pid] = Entry(pid, int(fields[1]), int(fields[3]))
    return found


def members(leader: int, entries: Mapping[int, Entry] | None = None) -> set[int]:
    """Living processes in `leader`'s session, and everything below them, itself included where it lives."""
    entries = table() if entries is None else entries
    found = {pid for pid, entry in entries.items() if entry.session == leader or pid == leader}
    while grown := {pid for pid, entry in entries.items() if entry.parent in found} - found:
        found |= grown
    return found


def children(parent: int, entries: Mapping[int, Entry] | None = None) -> set[int]:
    """Living processes whose parent is `parent`."""
    return {pid for pid, entry in (table() if entries is None else entries).items() if entry.parent == parent}


def below(parent: int, entries: Mapping[int, Entry] | None = None) -> set[int]:
    """Living processes below `parent`, in whatever session; not itself."""
    entries = table() if entries is None else entries
    found = children(parent, entries)
    while grown := {pid for pid, entry in entries.items() if entry.parent in found} - found:
        found |= grown
    return found


def kill_tree(leader: int) -> None:
    """End everything in `leader`'s session and below it. Returns when the kernel shows none of it any more.

    What is in an uninterruptible wait is given a few seconds; the signal is pending on it then.
    """
    _kill(lambda: members(leader))


def kill_below(parent: int) -> None:
    """End everything below `parent`, and not itself. Returns as `kill_tree` does."""
    _kill(lambda: below(parent))


def _kill(find: Callable[[], set[int]]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    doomed: dict[int, float] = {}  # with their start times: one whose parent has ended is no longer found below it
    while time.monotonic() < deadline:
        found = find()
        doomed |= {pid: began for pid in found if (began := process_started(pid)) is not None}
        doomed = {pid: began for pid, began in doomed.items() if process_started(pid) == began}
        if not doomed:
            return
        for chosen in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: none can start another behind our back
            for pid in doomed:
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
