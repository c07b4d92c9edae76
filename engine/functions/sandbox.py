"""What confines the host of the user's functions.

Today: resource limits, `no_new_privs`, death with the parent, and the hygiene that `process` gives the host at
its start (no environment, no inherited descriptors, a session of its own). Kernel confinement (seccomp,
Landlock, namespaces) takes its place in `confine`, after the host has imported what it needs. Called inside
the host only; it trusts nobody's code to call it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

OPEN_FILES = 64


def die_with(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies; exits at once if it already has."""
    if not _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        raise OSError("the kernel refuses to end the host with its parent (prctl PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(0)


def confine(memory: int) -> list[str]:
    """Apply every layer that the kernel grants; returns in words which are now in force."""
    layers = ["own process and session", "empty environment", "no inherited descriptors", "ends with its parent"]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_AS, memory)
    layers += [f"memory {memory >> 20} MiB", f"{OPEN_FILES} open files", "no bytes written to files"]
    _limit(resource.RLIMIT_NPROC, 0)
    if os.getuid() != 0:  # the kernel exempts root from this one
        layers.append("no new processes")
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        layers.append("no new privileges")
    if _prctl(_PR_SET_DUMPABLE, 0):
        layers.append("no core dump, no tracing by its equals")
    return layers


def in_force() -> list[str]:
    """The layers that confine a host on this machine, found by starting one."""
    from engine.functions.client import open_functions
    from engine.functions.sources import Sources

    with open_functions(Sources()) as host:
        return list(host.confinement)


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def _prctl(option: int, value: int) -> bool:
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)
