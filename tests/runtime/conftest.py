"""A claimed stage in a real store, for what runs inside a stage's process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from engine.plan.stage import Plan, Stage
from engine.runtime.task import Task
from engine.settings import Settings
from engine.store import runs, stages, workers
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def claim(db: Database, settings: Settings) -> Callable[..., Task]:
    """`claim()` begins a new run; `claim(after=task)` is the next attempt, that one being lost."""

    def claim(after: Task | None = None, **fields: Any) -> Task:
        with db.write() as session:
            worker = workers.register(
                session, name="w", host="h", pid=1, pid_started=None, queues=["default"], slots=1, now=NOW
            )
            if after is None:
                submission = runs.Submission(source="", resolved={}, max_attempts=1000)
                stage = Stage("train", "test.kind", fields.pop("entry", "nowhere:nothing"), (), **fields)
                run = runs.submit(session, Plan("test", 7, (stage,)), submission, now=NOW)
                stage_id = stages.for_run(session, run.id)[0].id
            else:
                stage_id = after.claimed.stage_id
                stages.lose(session, after.claimed.run_id, after.claimed.attempt_id, now=NOW)
            claimed = stages.claim(session, stage_id, worker=worker, devices=(), now=NOW, lease_s=60)
        assert isinstance(claimed, Claimed)
        task = Task(claimed, replace(settings, database_url=db.url))
        task.write()
        task.output_dir.mkdir()
        return task

    return claim


@pytest.fixture
def finish(db: Database) -> Callable[[Task, Outcome], None]:
    """Record how an attempt ended."""

    def finish(task: Task, outcome: Outcome) -> None:
        with db.write() as session:
            stages.finish(session, task.claimed, outcome, now=NOW)

    return finish
