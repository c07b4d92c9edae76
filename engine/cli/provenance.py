"""What a run was submitted with: the version of our code, the installed packages, and the machine.

Nothing here changes between two submissions on one machine unless something that matters did: `rlx compare` shows
every difference. It is cheap (three calls of git, one listing of site-packages) because every submission pays for it,
and can be gathered while something else goes on.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import engine

CODE = ("engine", "workers", "dashboard", "migrations", "pyproject.toml")
"""What of a checkout is our code; an edited spec is a difference of the spec."""


@dataclass(frozen=True)
class Provenance:
    """Code, packages and hardware, as they are stored with a run."""

    code: dict[str, Any]
    packages: dict[str, Any]
    hardware: dict[str, Any]


def capture() -> Provenance:
    """All of it, here and now."""
    return Provenance(
        code=code(Path(engine.__file__).resolve().parent.parent), packages=packages(), hardware=hardware()
    )


def capturing() -> Callable[[], Provenance]:
    """Begin to `capture`, and wait for it when the result is called: git and nvidia-smi work beside us meanwhile."""
    found: list[Provenance] = []
    thread = Thread(target=lambda: found.append(capture()), daemon=True)
    thread.start()

    def captured() -> Provenance:
        thread.join()
        return found[0] if found else capture()

    return captured


def user() -> str:
    """Who submits; a container without a name for its user id is no reason to fail."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def code(root: Path) -> dict[str, Any]:
    """`{version, commit, dirty, diff_sha256}`; the last three are null where `root` is no git checkout of ours."""
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"version": engine.__version__, "commit": None, "dirty": None, "diff_sha256": None}
    changed = _git(root, "diff", "HEAD", "--", *CODE) or ""
    untracked = (_git(root, "ls-files", "--others", "--exclude-standard", "--", *CODE) or "").splitlines()
    digest = hashlib.sha256(changed.encode())
    for name in sorted(untracked):
        digest.update(f"\0{name}\0".encode())
        if (root / name).is_file():
            digest.update((root / name).read_bytes())
    dirty = bool(changed or untracked)
    return {
        "version": engine.__version__,
        "commit": commit.strip(),
        "dirty": dirty,
        "diff_sha256": digest.hexdigest() if dirty else None,
    }


def packages() -> dict[str, Any]:
    """`{name: version}` of Python and everything installed beside it, read off the names of the dist-info folders."""
    found: dict[str, str] = {}
    for entry in reversed(sys.path):  # the first on the path wins, as for imports
        folder = Path(entry or ".")
        if not folder.is_dir():
            continue
        for name in os.listdir(folder):
            if name.endswith(".dist-info"):
                project, _, version = name.removesuffix(".dist-info").rpartition("-")
                if project:
                    found[project.lower().replace("_", "-")] = version
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def hardware() -> dict[str, Any]:
    """The machine: host, system, processor, memory, GPUs with their driver."""
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus(),
    }


def cpu_model() -> str | None:
    """The processor's name as the kernel has it."""
    return _proc_value(Path("/proc/cpuinfo"), "model name") or platform.processor() or None


def gpus() -> list[dict[str, str]]:
    """NVIDIA's GPUs as nvidia-smi lists them; none where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    fields = ("index", "name", "uuid", "memory.total", "driver_version")
    listing = _output([tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], timeout_s=10)
    if listing is None:
        return []
    lines = [[part.strip() for part in line.split(",")] for line in listing.splitlines()]
    return [
        dict(zip(("index", "name", "uuid", "memory", "driver"), line, strict=True)) for line in lines if len(line) == 5
    ]


def _memory_bytes() -> int | None:
    value = _proc_value(Path("/proc/meminfo"), "MemTotal")
    return int(value.split()[0]) * 1024 if value else None


def _proc_value(path: Path, key: str) -> str | None:
    try:
        with path.open() as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() == key:
                    return value.strip()
    except OSError:
        return None
    return None


def _git(root: Path, *arguments: str) -> str | None:
    tool = shutil.which("git")
    return None if tool is None else _output([tool, "-C", str(root), *arguments], timeout_s=10)


def _output(command: list[str], *, timeout_s: float) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
