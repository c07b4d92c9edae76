"""Whether a process on this host still lives, told by its pid and its start time (pids are reused)."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def host_name() -> str:
    """The name under which this host's workers are registered."""
    return socket.gethostname()


def process_started(pid: int) -> float | None:
    """When the process began, in clock ticks since boot as the kernel counts them; None where there is none.

    A zombie counts as none: it will do nothing more.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name, in brackets, may contain anything
    return None if fields[0] in ("Z", "X") else float(fields[19])


def provably_gone(host: str, pid: int, started: float | None) -> bool:
    """True where the process was on this host and is no more. Of another host's nothing can be said: False."""
    if host != host_name() or not os.path.isdir("/proc/self"):
        return False
    now = process_started(pid)
    return now is None or (started is not None and now != started)
