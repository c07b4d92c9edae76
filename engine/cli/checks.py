"""What `rlx doctor` looks at: each check says ok, warn or fail, what it saw, and what would cure it.

Nothing here imports torch: a build is recognised by the file that says what it is.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from engine.cli import provenance
from engine.cli.output import size
from engine.cli.places import shown_url
from engine.errors import NotFound, Refused, RlxError
from engine.settings import Settings

EXTRAS = {
    "vllm": "vllm",
    "colbert": "colbert",
    "deepspeed": "deepspeed",
    "hub": "datasets",
    "postgres": "psycopg",
    "redis": "redis",
}
"""Extra -> the module that it brings."""
NETWORK_FILESYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "9p")
LOW_DISK = 5 * 1024**3


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    status: str
    """ok, warn or fail."""
    detail: str
    fix: str = ""


def all_checks(settings: Settings) -> list[Check]:
    """Every check, in the order in which a newcomer would hit what is wrong."""
    looks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("home", lambda: _home(settings)),
        ("database", lambda: _database(settings)),
        ("broker", lambda: _broker(settings)),
        ("devices", _devices),
        ("sandbox", _sandbox),
        ("workers", lambda: _workers(settings)),
    ]
    found: list[Check] = []
    for name, look in looks:
        try:
            found.extend(look())
        except RlxError as error:
            found.append(Check(name, "fail", str(error)))
        except Exception as error:  # noqa: BLE001  # one broken check must not hide the others
            found.append(Check(name, "fail", f"{type(error).__name__}: {error}"))
    return found


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    fine = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check(
        "python", "ok" if fine else "fail", f"{version} at {sys.executable}", "" if fine else "use Python 3.11 to 3.13"
    )


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires("rlx") or ()]
    except metadata.PackageNotFoundError:
        yield Check(
            "packages", "warn", "rlx itself is not installed, only importable", "pip install -e . in its checkout"
        )
        return
    installed = provenance.packages()
    wrong = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(requirement.name.lower().replace("_", "-"))
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        yield Check("packages", "fail", "; ".join(wrong), "pip install -c constraints.txt rlx")
    else:
        yield Check(
            "packages",
            "ok",
            ", ".join(f"{name} {installed.get(name)}" for name in ("rlx", "torch", "transformers")),
        )
    absent = [extra for extra, module in EXTRAS.items() if find_spec(module) is None]
    if absent:
        yield Check("extras", "ok", f"not installed, and not needed by every spec: {', '.join(absent)}")


def _home(settings: Settings) -> Iterator[Check]:
    home = settings.home
    above = next(folder for folder in (home, *home.parents) if folder.exists())
    if not os.access(above, os.W_OK):
        yield Check("home", "fail", f"{home} cannot be written", "set RLX_HOME to a folder of yours")
        return
    free = shutil.disk_usage(above).free
    detail = f"{home} ({'' if home.exists() else 'made by the first submission; '}{size(free)} free)"
    filesystem = _filesystem(above)
    if settings.database_url.startswith("sqlite") and filesystem in NETWORK_FILESYSTEMS:
        yield Check(
            "home",
            "warn",
            f"{detail} on {filesystem}, where SQLite's locks are unsafe",
            "set RLX_HOME to a local disk, or RLX_DATABASE_URL to PostgreSQL",
        )
    elif free < LOW_DISK:
        yield Check(
            "home",
            "warn",
            detail,
            "checkpoints may not fit: free some space, or set RLX_ARTIFACTS and RLX_HOME elsewhere",
        )
    else:
        yield Check("home", "ok", detail)


def _filesystem(path: Path) -> str:
    """The type of the file system that holds `path`, as /proc/mounts has it; empty where there is none."""
    best, kind = "", ""
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, mount, found, *_ = line.split(" ")
        if str(path.resolve()).startswith(mount) and len(mount) > len(best):
            best, kind = mount, found
    return kind


def _database(settings: Settings) -> Iterator[Check]:
    url = shown_url(settings.database_url)
    from engine.store import schema
    from engine.store.connection import sqlite_file

    file = sqlite_file(settings.database_url)
    if file is not None and not file.exists():
        yield Check("database", "ok", f"{url} (made by the first submission)")
        return
    try:
        current = schema.current(settings.database_url)
    except RlxError as error:
        yield Check("database", "fail", str(error), "start it, or correct RLX_DATABASE_URL")
        return
    if current == schema.HEAD:
        yield Check("database", "ok", f"{url} at revision {current}")
    else:
        yield Check(
            "database", "fail", f"{url} is at revision {current or 'base'}, not {schema.HEAD}", "rlx db upgrade"
        )


def _broker(settings: Settings) -> Iterator[Check]:
    if settings.embedded:
        yield Check("broker", "ok", f"files in {settings.broker}; no server is needed")
        return
    import socket

    parts = urlsplit(settings.broker_url)
    port = parts.port or {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}.get(parts.scheme, 0)
    where = f"{parts.scheme}://{parts.hostname}:{port}"
    try:
        with socket.create_connection((parts.hostname or "127.0.0.1", port), timeout=3):
            yield Check("broker", "ok", f"{where} answers")
    except OSError as error:
        yield Check(
            "broker",
            "fail",
            f"{where} does not answer: {error.strerror or error}",
            "start it, or correct RLX_BROKER_URL",
        )
    if settings.database_url.startswith("sqlite"):
        yield Check(
            "broker",
            "warn",
            "a broker for many machines beside a database for one",
            "set RLX_DATABASE_URL to PostgreSQL that all workers reach",
        )


def _devices() -> Iterator[Check]:
    memory = provenance.hardware()["memory_bytes"]
    yield Check(
        "cpu",
        "ok",
        f"{os.cpu_count()} cores, {provenance.cpu_model()}, {size(memory) if memory else 'unknown'} of memory",
    )
    gpus = provenance.gpus()
    build = _torch_cuda()
    if not gpus:
        yield Check("gpus", "ok", "none: stages with `device: auto` run on the CPU")
    elif build is None:
        yield Check(
            "gpus", "warn", f"{len(gpus)} here, but this torch is built for the CPU", "install torch's CUDA build"
        )
    else:
        names = ", ".join(f"{gpu['index']}: {gpu['name']} ({gpu['memory']})" for gpu in gpus)
        yield Check("gpus", "ok", f"{names}; driver {gpus[0]['driver']}, torch built for CUDA {build}")


def _torch_cuda() -> str | None:
    """The CUDA version that torch was built for, read from its version file without importing it."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    source = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b[^=]*=\s*'([^']+)'", source, re.MULTILINE)
    return found.group(1) if found else None


def _sandbox() -> Iterator[Check]:
    from engine.functions.sandbox import in_force

    layers = in_force()
    if layers:
        yield Check("sandbox", "ok", ", ".join(layers))
    else:
        yield Check("sandbox", "warn", "nothing confines the functions of a spec here", "run only specs that you trust")


def _workers(settings: Settings) -> Iterator[Check]:
    from engine.clock import utc_now
    from engine.store import workers
    from engine.store.session import open_database

    try:
        with open_database(settings, create=False).read() as session:
            alive = list(workers.alive(session, utc_now()))
    except (NotFound, Refused):  # no store yet, or one that `rlx db upgrade` has to see first
        alive = []
    if alive:
        yield Check("workers", "ok", ", ".join(f"{found.name} ({found.slots} slots)" for found in alive))
    elif settings.embedded:
        yield Check("workers", "ok", "none alive; `rlx submit` starts one for its run")
    else:
        yield Check(
            "workers",
            "warn",
            "none alive: what is submitted waits",
            "rlx worker, on a machine that reaches database and broker",
        )
