"""A home whose store is full of runs, one that is empty, and the app over either."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from engine.store.session import open_database
from tests.dashboard.seed import populate

ROOT = Path(__file__).resolve().parent.parent.parent
APP = ROOT / "dashboard" / "app.py"
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

Open = Callable[..., AppTest]


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with twelve runs; nobody writes to it."""
    home = tmp_path_factory.mktemp("seeded")
    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    with database.write() as session:
        populate(session, now=NOW)
    database.close()
    return home


@pytest.fixture(autouse=True)
def _main() -> Iterator[None]:
    """AppTest takes the place of `__main__`, which every process that is spawned later would run again."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A home with a store without a run."""
    open_database(f"sqlite:///{tmp_path / 'rlx.db'}").close()
    return tmp_path


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the app over a home, at a page and with query parameters, as a link would."""

    def opened(home: Path, page: str = "runs", query: Mapping[str, str | list[str]] | None = None) -> AppTest:
        monkeypatch.setenv("RLX_HOME", str(home))
        for name in ("RLX_DATABASE_URL", "RLX_BROKER_URL", "RLX_ARTIFACTS"):
            monkeypatch.delenv(name, raising=False)
        app = AppTest.from_file(APP, default_timeout=60)
        if page != "runs":
            app.run()
            app.switch_page(f"views/{page}.py")
        for name, value in (query or {}).items():
            app.query_params[name] = value
        app.run()
        assert not app.exception, [error.value for error in app.exception]
        return app

    return opened
