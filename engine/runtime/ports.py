"""Ports for services: one that is free, and who listens on it in the end."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

HOST = "127.0.0.1"
_LOWEST = 20_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 1000
_LISTENS = "0A"


def free_port() -> int:
    """A port that nobody listens on, and that the kernel gives to nobody who asks for any.

    Between our look and the service's bind another process may take it all the same: see `is_theirs`.
    """
    highest = int(_RANGE.read_text().split()[0]) if _RANGE.is_file() else 32_768
    ports = range(_LOWEST, highest) if highest - _LOWEST > 1000 else range(1024, 65_536)
    for _ in range(_TRIES):
        port = random.SystemRandom().choice(ports)  # no experiment's randomness: two runs want two ports
        if not taken(port):
            return port
    raise OSError(f"no free port among {ports.start} to {ports.stop - 1} in {_TRIES} tries")


def taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else one that was in use a moment ago is taken
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return True
    return False


def is_anothers(port: int, family: Iterable[int]) -> bool:
    """Whether who listens at `port` is a process that we can see, and none of `family`."""
    sockets = _listening(port)
    own = {pid for pid in family if sockets & _sockets(pid)}
    if own or not sockets:
        return False
    return any(sockets & _sockets(int(name)) for name in os.listdir("/proc") if name.isdigit())


def _listening(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(f"socket:[{fields[9]}]")
    return found


def _sockets(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found
