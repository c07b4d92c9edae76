"""Stages of all sorts in a real store, a nursery that the module's tests share, and what supervising needs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from engine.clock import utc_now
from engine.plan.stage import Plan, Resources, Stage
from engine.settings import Settings
from engine.store import runs, stages, workers
from engine.store.session import Database
from engine.store.tables import Run, StageId
from tests.waiting import until
from workers.children import Children
from workers.supervisor import Deps, Times

T = TypeVar("T")
STAGES = Path(__file__).parents[1] / "acceptance"


@pytest.fixture(name="until")
def _until() -> Callable[..., object]:
    """`until(condition)` waits, boundedly."""
    return until


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """A nursery, started once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(STAGES), os.environ.get("PYTHONPATH")])))
        patch.setenv("RLX_PRELOAD", "torch")  # these stages need none of the rest
        nursery = Children(tmp_path_factory.mktemp("run"))
        nursery.warm_up()
        yield nursery
        nursery.close()


@pytest.fixture
def deps(db: Database, settings: Settings, children: Children) -> Deps:
    """A registered worker with short times."""
    with db.write() as session:
        worker = workers.register(
            session, name="w", host="h", pid=1, pid_started=None, queues=["default"], slots=2, now=utc_now()
        )
    return Deps(
        replace(settings, database_url=db.url),
        db,
        worker,
        children,
        times=Times(poll_s=0.05, heartbeat_s=0.2, lease_s=60, grace_s=30, retry_s=0.01),
    )


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Where a stage waits: it makes `gate.reached`, and goes on once `gate` is there."""
    return tmp_path / "gate"


@pytest.fixture
def clock_from_the_gate(gate: Path) -> Callable[[], float]:
    """Stands still until the stage has reached its gate: a stage's limits do not hurry a slow machine."""
    reached = None

    def clock() -> float:
        nonlocal reached
        if reached is None:
            if not gate.with_suffix(".reached").exists():
                return 0.0
            reached = time.monotonic()
        return time.monotonic() - reached

    return clock


@pytest.fixture
def submit(db: Database) -> Callable[..., tuple[Run, StageId]]:
    """`submit("noop", extra=…)` queues a run of one stage of `acceptance/queue_stages.py`."""

    def submit(
        function: str,
        *,
        timeout_s: float | None = None,
        stall_timeout_s: float | None = None,
        light: bool = False,
        **extra: Any,
    ) -> tuple[Run, StageId]:
        stage = Stage(
            function,
            f"test.{function}",
            f"queue_stages:{function}",
            (),
            resources=Resources(timeout_s=timeout_s, stall_timeout_s=stall_timeout_s, light=light),
            extra=extra,
        )
        with db.write() as session:
            run = runs.submit(
                session,
                Plan("test", 3, (stage,)),
                runs.Submission(source="", resolved={}, no_cache=True),
                now=utc_now(),
            )
            return run, StageId(stages.for_run(session, run.id)[0].id)

    return submit
