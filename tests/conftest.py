"""Fixtures that every test may use: a store on each database, settings of a private home, a clock that we turn.

Services are looked for once; a test whose service is absent skips with the reason, and fails instead
under CI (`RLX_REQUIRE_SERVICES=1`), where all of them are promised.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

# Before torch is imported: a few test processes on two cores, each with a thread a core, wait for each other's threads
# most of the time. Stage processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from engine.settings import Settings, read_settings
from engine.store.session import Database, open_database
from tests.databases import POSTGRES, SharedDatabase, fresh_database

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
REDIS = os.environ.get("RLX_TEST_REDIS", "redis://127.0.0.1:6379/9")
RABBITMQ = os.environ.get("RLX_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//")
BROWSERS = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


def _listens(url: str) -> str | None:
    """None where something answers at the URL's host and port, else the reason."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 0
    try:
        with socket.create_connection((host, port), timeout=2):
            return None
    except OSError as error:
        return f"nothing answers at {host}:{port} ({error.strerror or error})"


def _absent_browser() -> str | None:
    return None if any(Path(path).exists() for path in BROWSERS) else "no Chromium or Chrome is installed"


def _absent_gpu() -> str | None:
    return None if Path("/proc/driver/nvidia/version").exists() else "no NVIDIA driver is loaded"


def _absent_package(name: str) -> str | None:
    return None if find_spec(name) else f"the {name} package is not installed"


def _absent_trackers() -> str | None:
    return next(filter(None, map(_absent_package, ("tensorboard", "wandb", "mlflow"))), None)


def _absent_netns() -> str | None:
    from tests.faults.network import absent

    return absent()


def _absent_data() -> str | None:
    return None if SHARED_DATA.is_dir() else "the folder ../shared/data is absent"


ABSENT: dict[str, Callable[[], str | None]] = {
    "postgres": lambda: _listens(POSTGRES),
    "redis": lambda: _listens(REDIS),
    "rabbitmq": lambda: _listens(RABBITMQ),
    "chromium": _absent_browser,
    "gpu": _absent_gpu,
    "vllm": lambda: _absent_package("vllm"),
    "deepspeed": lambda: _absent_package("deepspeed"),
    "tracking": _absent_trackers,
    "netns": _absent_netns,
    "shared_data": _absent_data,
}
PROMISED_BY_CI = {"postgres", "redis", "rabbitmq", "chromium", "vllm", "deepspeed", "tracking"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs an absent service; where CI promises the service, let the test run and fail."""
    strict = os.environ.get("RLX_REQUIRE_SERVICES") == "1"
    reasons = {name: reason for name, check in ABSENT.items() if (reason := check())}
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name) and not (strict and name in PROMISED_BY_CI):
                item.add_marker(pytest.mark.skip(reason=f"{name}: {reason}"))


class FakeClock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.time = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> datetime:
        self.time += timedelta(seconds=seconds)
        return self.time


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A private home folder with the embedded defaults."""
    home = tmp_path / ".rlx"
    home.mkdir()
    return read_settings({"RLX_HOME": str(home)}, cwd=tmp_path)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database without tables."""
    with fresh_database() as url:
        yield url


@pytest.fixture(scope="session")
def shared_database() -> Iterator[SharedDatabase]:
    """What `db` gives to one test after another."""
    with SharedDatabase() as shared:
        yield shared


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def db(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Database]:
    """An empty store at the newest revision, once on SQLite and once on PostgreSQL."""
    with ExitStack() as stack:
        url = settings.database_url
        if request.param == "postgres":
            url = request.getfixturevalue("shared_database").empty()
        database = open_database(url)
        stack.callback(database.engine.dispose)
        yield database
