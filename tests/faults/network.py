"""Hosts that can be cut off from each other: network namespaces of their own, joined by virtual cables.

A hub, where servers may run, and hosts around it. Nothing of the machine's own network is touched, and all of it is
gone when the processes that hold the namespaces are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.waiting import until


def absent() -> str | None:
    """Why there can be no such network here, or None."""
    missing = [name for name in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(
        ["unshare", "--net", "--uts", "ip", "link", "add", "rlx-probe", "type", "veth"],
        capture_output=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"the kernel refuses: {tried.stderr.decode().strip()}"


class Place:
    """One namespace, kept alive by a process that sleeps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
        )
        until(lambda: _namespace(self._holder.pid) not in (None, _namespace(os.getpid())), "a network of its own")
        self.run("hostname", name)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def inside(self) -> list[str]:
        """What to put before a command that shall run here."""
        return ["nsenter", "--target", str(self._holder.pid), "--net", "--uts"]

    @property
    def pid(self) -> int:
        """Of the process that holds it."""
        return self._holder.pid

    def run(self, *command: str) -> None:
        """Run a command here."""
        subprocess.run([*self.inside, *command], check=True, capture_output=True)

    def close(self) -> None:
        """Let go of it; the kernel removes it with the last process inside."""
        self._holder.kill()
        self._holder.wait()


class Network:
    """A hub and hosts around it. `address(host)` is where that host finds the hub."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hub = Place("hub")
        self.hosts: dict[str, Place] = {}
        for name in hosts:
            self.hosts[name] = Place(name)
            self._join(name)

    def address(self, host: str) -> str:
        """The hub's, on the cable to `host`; from the range that is set aside for tests (RFC 2544)."""
        return f"198.18.{list(self.hosts).index(host)}.1"

    def connect(self) -> None:
        """Have the hosts reach each other, too, by way of the hub."""
        self.hub.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        for name, host in self.hosts.items():
            host.run("ip", "route", "add", "default", "via", self.address(name))

    def cut(self, host: str) -> None:
        """Pull the cable: nothing comes through, and nobody is told."""
        self.hub.run("ip", "link", "set", f"to-{host}", "down")

    def mend(self, host: str) -> None:
        """Put it back."""
        self.hub.run("ip", "link", "set", f"to-{host}", "up")

    def close(self) -> None:
        """End all of it."""
        for place in (*self.hosts.values(), self.hub):
            place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _join(self, name: str) -> None:
        host, address = self.hosts[name], self.address(name)
        ends = ["type", "veth", "peer", "name", "to-hub", "netns", str(host.pid)]
        self.hub.run("ip", "link", "add", f"to-{name}", *ends)
        self.hub.run("ip", "addr", "add", f"{address}/24", "dev", f"to-{name}")
        self.hub.run("ip", "link", "set", f"to-{name}", "up")
        host.run("ip", "addr", "add", f"{address.rpartition('.')[0]}.2/24", "dev", "to-hub")
        host.run("ip", "link", "set", "to-hub", "up")


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(Path("/proc", str(pid), "ns", "net"))
    except OSError:
        return None
