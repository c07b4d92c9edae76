"""What must be true of the store after every move, whatever the move was; `check` asserts all of it.

Some of it is said beside the model of what should be, some is true of any store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from engine.store import queue
from engine.store.session import Database
from engine.store.tables import (
    Attempt,
    Checkpoint,
    Lease,
    Metric,
    Outbox,
    Run,
    Sample,
    Series,
    Stage,
    StageId,
    WorkerId,
)
from tests.store import move_log
from tests.store.queue_model import RunModel, StageModel, running


def check(db: Database, models: Mapping[object, RunModel], workers: Sequence[WorkerId], now: datetime) -> None:
    """Every promise, in one look at the store. Without models, those that need none."""
    assert move_log.breaches(db) == [], "a move that is not allowed, or an end written again"
    stages = {stage.id: stage for model in models.values() for stage in model.stages.values()}
    with db.read() as session:
        _attempts_are_numbered_without_a_gap(session)
        _what_is_ready_will_be_announced(session)
        if models:
            _statuses_are_the_models(session, models)
            _one_attempt_runs_where_the_stage_runs_and_holds_the_device(session, models, workers)
            _what_nobody_was_told_of_is_in_the_outbox(session, stages)
            _every_report_is_there_once(session, stages)
            due, surely = (
                {stage.id for stage in stages.values() if is_due(stage, now)}
                for is_due in (StageModel.due, StageModel.surely_due)
            )
            found = {one.stage_id for one in queue.ready(session, queues=["default"], now=now, limit=999)}
            assert surely <= found <= due, "a worker that looks finds what is due"


def _statuses_are_the_models(session: Session, models: Mapping[object, RunModel]) -> None:
    columns = select(Stage.run_id, Stage.name, Stage.status, Stage.attempt, Stage.failures)
    found: dict[object, dict[str, tuple[str, int, int]]] = {}
    for run_id, name, *rest in session.execute(columns):
        found.setdefault(run_id, {})[name] = tuple(rest)
    assert found == {
        run_id: {name: (stage.status, stage.attempt, stage.failures) for name, stage in model.stages.items()}
        for run_id, model in models.items()
    }
    statuses = dict(session.execute(select(Run.id, Run.status)).all())
    assert statuses == {run_id: model.status for run_id, model in models.items()}


def _one_attempt_runs_where_the_stage_runs_and_holds_the_device(
    session: Session, models: Mapping[object, RunModel], workers: Sequence[WorkerId]
) -> None:
    rows = session.execute(
        select(Attempt.stage_id, Attempt.number, Lease.worker_id, Lease.device)
        .outerjoin(Lease, Lease.attempt_id == Attempt.id)
        .where(Attempt.status == "running")
    ).all()
    expected = [
        (stage.id, stage.attempt, workers[stage.worker], device)
        for _, stage in running(models)
        for device in stage.devices
        if stage.worker is not None
    ]
    assert sorted(map(tuple, rows)) == sorted(expected)
    assert session.scalar(select(func.count()).select_from(Lease)) == len(expected)
    assert len({row[2:] for row in rows}) == len(rows), "a device is lent twice"


def _attempts_are_numbered_without_a_gap(session: Session) -> None:
    rows = session.execute(
        select(Stage.attempt, func.count(Attempt.id), func.max(Attempt.number), func.min(Attempt.number))
        .join(Attempt, Attempt.stage_id == Stage.id)
        .group_by(Stage.id, Stage.attempt)
    ).all()
    assert all(newest == count == highest and lowest == 1 for newest, count, highest, lowest in rows)


def _what_is_ready_will_be_announced(session: Session) -> None:
    forgotten = select(func.count()).select_from(Stage).where(Stage.status == "ready", Stage.announce_after.is_(None))
    assert session.scalar(forgotten) == 0, "the broker may lose a message, and nothing repeats it"


def _what_nobody_was_told_of_is_in_the_outbox(session: Session, stages: Mapping[StageId, StageModel]) -> None:
    announced = set(session.scalars(select(Outbox.stage_id)))
    assert {stage.id for stage in stages.values() if stage.status == "ready" and not stage.heard} <= announced


def _every_report_is_there_once(session: Session, stages: Mapping[StageId, StageModel]) -> None:
    texts: dict[StageId, list[str]] = {}
    for stage_id, text in session.execute(
        select(Sample.stage_id, Sample.text).order_by(Sample.attempt, Sample.sequence)
    ):
        texts.setdefault(stage_id, []).append(text)
    points: dict[StageId, list[tuple[int, float | None]]] = {}
    for stage_id, step, value in session.execute(
        select(Series.stage_id, Metric.step, Metric.value)
        .join(Metric, Metric.series_id == Series.id)
        .order_by(Metric.step)
    ):
        points.setdefault(stage_id, []).append((step, value))
    newest = select(Checkpoint.stage_id, func.max(Checkpoint.step)).group_by(Checkpoint.stage_id)
    saved = dict(session.execute(newest).all())
    for stage in stages.values():
        if stage.status == "running":  # one that waits has yet to strike out what it will tell again
            assert texts.get(stage.id, []) == stage.told
        assert points.get(stage.id, []) == [(step, step / 2) for step in range(1, stage.best + 1)]
        assert saved.get(stage.id) == (stage.saved and stage.saved.step)
