"""Everything that a run reported, row by row, for whoever writes it to files. Only reads, and never all at once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.store import metrics as store
from engine.store.tables import Evaluation, Metric, RunId, Sample, Stage

Row = dict[str, Any]
_AT_ONCE = 10_000


def metrics(session: Session, run_id: RunId) -> Iterator[Row]:
    """Every point: of each stage in plan order, of each key by step. A value that was not finite is None."""
    for info in store.series(session, run_id):
        points = select(Metric.step, Metric.value, Metric.time).where(Metric.series_id == info.id).order_by(Metric.step)
        for step, value, time in session.execute(points.execution_options(yield_per=_AT_ONCE)):
            at = datetime.fromtimestamp(time, UTC)
            yield {"stage": info.stage, "key": info.key, "step": step, "value": value, "time": at}


def evaluations(session: Session, run_id: RunId) -> Iterator[Row]:
    """Every score that an item received, with the evaluation that it belongs to."""
    found = (
        select(Stage.name, Evaluation)
        .join(Stage, Stage.id == Evaluation.stage_id)
        .where(Evaluation.run_id == run_id)
        .order_by(Stage.position, Evaluation.id)
    )
    for stage, row in session.execute(found.execution_options(yield_per=100)):
        about = {"stage": stage, "step": row.step, "metric": row.metric, "split": row.split}
        about |= {"functions_hash": row.functions_hash}
        for item, scores in row.items:
            for run, score in enumerate(scores):
                yield {**about, "item": item, "run": run, "score": score}


def samples(session: Session, run_id: RunId) -> Iterator[Row]:
    """Every sample, in the order in which they were made."""
    found = (
        select(Stage.name, Sample)
        .join(Stage, Stage.id == Sample.stage_id)
        .where(Sample.run_id == run_id)
        .order_by(Stage.position, Sample.id)
    )
    for stage, row in session.execute(found.execution_options(yield_per=1000)):
        fields = ("step", "split", "item", "kind", "score", "text", "data")
        yield {"stage": stage, **{field: getattr(row, field) for field in fields}}
