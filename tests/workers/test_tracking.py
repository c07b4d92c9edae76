"""Which runs a worker starts a mirror for: those whose spec asks, once, and while nobody else mirrors them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from engine.clock import utc_now
from engine.plan.stage import Plan, Stage
from engine.settings import Settings
from engine.store import locks, runs, stages, workers
from engine.store.session import Database
from engine.store.tables import Run, StageId
from workers import tracking
from workers.tracking import Mirrors


class Process:
    """One that was started: it is over once `code` is set."""

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Process]]:
    found: list[tuple[list[str], Process]] = []

    def popen(command: list[str], **more: Any) -> Process:
        found.append((command, Process()))
        return found[-1][1]

    monkeypatch.setattr(tracking.subprocess, "Popen", popen)
    return found


@pytest.fixture
def running(db: Database) -> Callable[..., Run]:
    """Submits a run and begins its stage."""

    def submit(**block: Any) -> Run:
        plan = Plan("a", 0, (Stage("train", "k", "m:f", (), config={"n": str(utc_now())}),))
        with db.write() as session:
            run = runs.submit(session, plan, runs.Submission("", {"tracking": block}), now=utc_now())
            worker = workers.register(
                session, name="w", host="h", pid=1, pid_started=None, queues=["default"], slots=2, now=utc_now()
            )
            (stage,) = stages.for_run(session, run.id)
            assert stages.claim(session, StageId(stage.id), worker=worker, devices=[], now=utc_now(), lease_s=60)
        return run

    return submit


@pytest.fixture
def mirrors(db: Database, settings: Settings) -> Mirrors:
    return Mirrors(replace(settings, database_url=db.url), db)


def test_a_run_that_asks_gets_one_and_only_one(mirrors: Mirrors, running: Any, started: list[Any]) -> None:
    run = running(tensorboard={"folder": None}, wandb=None)
    running(tensorboard=None, wandb=None)

    assert [mirrors.look(), mirrors.look()] == [1, 0]

    ((command, _),) = started
    assert command[3:6] == ["engine.cli", "track", run.handle]
    assert "--follow" in command


def test_who_is_mirrored_by_another_is_left_to_it(
    mirrors: Mirrors, running: Any, started: list[Any], db: Database
) -> None:
    run = running(mlflow={})
    with db.write() as session:
        locks.acquire(session, locks.tracking_lock(run.id), "other", now=utc_now(), ttl_s=60)
    assert mirrors.look() == 0


def test_one_that_ended_early_is_started_again_after_a_while(
    mirrors: Mirrors, running: Any, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running(mlflow={"uri": None})
    mirrors.look()
    started[0][1].code = 4
    assert mirrors.look() == 0
    monkeypatch.setattr(tracking, "AGAIN_S", 0.0)
    assert mirrors.look() == 1


def test_a_worker_for_one_run_looks_at_no_other(
    db: Database, settings: Settings, running: Any, started: list[Any]
) -> None:
    running(mlflow={"uri": None})
    mine = running(mlflow={"uri": None})
    assert Mirrors(replace(settings, database_url=db.url), db, mine.id).look() == 1
    assert started[0][0][5] == mine.handle
