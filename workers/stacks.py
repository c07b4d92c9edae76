"""Where the processes of a stage that hangs are standing: into its log, and as data for the autopsy.

Python processes that have faulthandler on SIGUSR1 (a stage's own, and what it forks) write their stacks themselves,
even from within C code that never returns. Of every process the kernel says what it waits for. Where py-spy is on
the PATH, it is asked about Python processes that stayed silent.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.runtime import trees

_PATIENCE_S = 2.0
"""For one process to write its stacks."""
_IN_ALL_S = 6.0
"""For all of them: the attempt's lease must be renewed meanwhile. After that only the kernel is asked."""
_QUIET_S = 0.1
"""Without a further byte in the log, they are all there."""
_MOST = 40
_THREADS = 16
_LONGEST = 20_000
"""Characters of stacks of one process that go into the store; the log has them all."""


def dump(leader: int, log: Path) -> list[dict[str, Any]]:
    """Ask every process of `leader`'s tree where it is; one entry each, the leader's first. Takes seconds at most."""
    family = sorted(trees.members(leader), key=lambda pid: (pid != leader, pid))
    found, deadline = [], time.monotonic() + _IN_ALL_S
    for pid in family[:_MOST]:
        command = _read(pid, "cmdline").replace("\0", " ").strip() or _read(pid, "comm").strip()
        if not command:
            continue  # it has just ended
        _write(log, f"--- stacks of process {pid}: {command[:300]}\n")
        stacks = ""
        if (left := deadline - time.monotonic()) > 0 and _answers(pid):
            stacks = _by_itself(pid, log, min(left, _PATIENCE_S))
        if not stacks and _is_python(pid) and (left := deadline - time.monotonic()) > 0:
            stacks = _by_py_spy(pid, min(left, _PATIENCE_S))
            _write(log, stacks)
        threads = _threads(pid)
        _write(log, "".join(f"{line}\n" for line in threads))
        state = next((line for line in _read(pid, "status").splitlines() if line.startswith("State:")), "State: ended")
        found.append(
            {
                "pid": pid,
                "command": command[:300],
                "state": state.partition(":")[2].strip(),
                "stacks": stacks[-_LONGEST:],
                "threads": threads,
            }
        )
    return found


def words(found: list[dict[str, Any]]) -> str:
    """The dump's head in one line: the leader's innermost frame, or what it waits for."""
    for line in (found[0]["stacks"].splitlines() + found[0]["threads"]) if found else ():
        if line.strip().startswith("File ") or " waits in " in line:
            return str(line.strip())
    return "nowhere to be seen"


def _by_itself(pid: int, log: Path, patience_s: float) -> str:
    """What the process writes to the log when asked."""
    before = _size(log)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGUSR1)
    deadline, size, quiet_from = time.monotonic() + patience_s, before, None
    while (now := time.monotonic()) < deadline:
        if (grown := _size(log)) != size:
            size, quiet_from = grown, now
        elif quiet_from is not None and now - quiet_from > _QUIET_S:
            break
        time.sleep(0.01)
    with suppress(OSError), log.open("rb") as file:
        file.seek(before)
        return file.read().decode("utf-8", "replace")
    return ""


def _by_py_spy(pid: int, patience_s: float) -> str:
    tool = shutil.which("py-spy")
    if tool is None:
        return ""
    try:
        told = subprocess.run(
            [tool, "dump", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout


def _answers(pid: int) -> bool:
    """Whether SIGUSR1 makes this process tell, and does not end it: a Python that has a handler for it."""
    caught = next((line for line in _read(pid, "status").splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return _is_python(pid) and bool(int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def _is_python(pid: int) -> bool:
    if _read(pid, "comm").startswith("python"):
        return True  # of a process that may not be traced there is no more to be seen
    try:
        return Path(os.readlink(f"/proc/{pid}/exe")).name.startswith("python")
    except OSError:
        return False


def _threads(pid: int) -> list[str]:
    """What the kernel says of each thread: its state, and the call that it waits in."""
    lines = []
    try:
        threads = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return []
    for thread in threads[:_THREADS]:
        place = f"task/{thread}"
        stat = _read(pid, f"{place}/stat").rpartition(")")[2].split()
        if not stat:
            continue
        waits, kernel = _read(pid, f"{place}/wchan").strip("0\n") or "user code", _read(pid, f"{place}/stack")
        lines.append(f"thread {thread} ({_read(pid, f'{place}/comm').strip()}), state {stat[0]}, waits in {waits}")
        lines += [f"    {frame}" for frame in kernel.splitlines()]  # empty for all but root
    return lines


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(log: Path, text: str) -> None:
    """Add to the log. A disk that is full must not keep us from ending the stage: the store has the stacks, too."""
    with suppress(OSError), log.open("a", encoding="utf-8") as file:
        file.write(text)
