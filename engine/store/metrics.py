"""Metrics: points written in batches, curves read in buckets.

A point is (series, step, value, time) in a table clustered by (series, step); a series is a key of a stage.
`MetricWriter` (in `metric_writer`, handed on here) writes them from a background thread.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import bindparam, func, select, text
from sqlalchemy.orm import Session

from engine.store.metric_writer import MetricWriter
from engine.store.tables import Metric, RunId, Series, Stage

__all__ = ["Curve", "CurvePoint", "Last", "MetricWriter", "SeriesInfo", "curve", "keys", "last", "series"]


@dataclass(frozen=True)
class SeriesInfo:
    """One key that one stage of a run logged."""

    id: int
    key: str
    stage: str


@dataclass(frozen=True)
class CurvePoint:
    """One bucket of a curve, or one point where a bucket holds no more."""

    step: int
    """The last one in the bucket."""
    value: float | None
    """At `step`; None where it was not finite."""
    low: float | None
    high: float | None
    time: datetime
    """At `step`."""
    count: int
    """How many points the bucket holds."""


@dataclass(frozen=True)
class Curve:
    """A metric of a run over its steps, no longer than was asked for."""

    key: str
    stage: str
    exact: bool
    """True where every point is its own bucket."""
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Last:
    """The newest point of a series."""

    step: int
    value: float | None
    time: datetime


def series(session: Session, run_id: RunId) -> list[SeriesInfo]:
    """What the run's stages logged: in plan order, and by key within a stage."""
    rows = session.execute(
        select(Series.id, Series.key, Stage.name)
        .join(Stage, Stage.id == Series.stage_id)
        .where(Series.run_id == run_id)
        .order_by(Stage.position, Series.key)
    )
    return [SeriesInfo(*row) for row in rows]


def keys(session: Session, run_id: RunId) -> list[str]:
    """The keys that the run logged, sorted."""
    return list(session.scalars(select(Series.key).where(Series.run_id == run_id).distinct().order_by(Series.key)))


def curve(
    session: Session,
    run_id: RunId,
    key: str,
    *,
    stage: str | None = None,
    buckets: int = 500,
    start: int | None = None,
    stop: int | None = None,
) -> Curve:
    """`key` over steps (from `start`, before `stop`) in at most `buckets` buckets of equal width.

    Where several stages logged the key, it is the last one's in plan order, unless `stage` names one. Every
    bucket has the lowest, highest and last value, so a spike is never lost. Empty for an unknown key.
    """
    query = (
        select(Series.id, Stage.name)
        .join(Stage, Stage.id == Series.stage_id)
        .where(Series.run_id == run_id, Series.key == key)
        .order_by(Stage.position.desc())
        .limit(1)
    )
    if stage is not None:
        query = query.where(Stage.name == stage)
    found = session.execute(query).one_or_none()
    if found is None:
        return Curve(key, stage or "", True, ())
    series_id, stage_name = found
    within = [Metric.series_id == series_id]
    if start is not None:
        within.append(Metric.step >= start)
    if stop is not None:
        within.append(Metric.step < stop)
    points = session.execute(
        select(Metric.step, Metric.value, Metric.time).where(*within).order_by(Metric.step).limit(buckets + 1)
    ).all()
    if len(points) <= buckets:
        exact = tuple(CurvePoint(step, value, value, value, _time(time), 1) for step, value, time in points)
        return Curve(key, stage_name, True, exact)
    first = points[0].step
    newest = session.scalars(select(func.max(Metric.step)).where(*within)).one()
    width = -(-(newest + 1 - first) // buckets)
    rows = session.execute(_BUCKETS, {"series": series_id, "first": first, "newest": newest, "width": width})
    return Curve(
        key,
        stage_name,
        False,
        tuple(CurvePoint(step, value, low, high, _time(time), count) for step, value, low, high, time, count in rows),
    )


# One pass over the clustered key for the extremes, then one look-up a bucket for its last point.
_BUCKETS = text(
    """
    SELECT metrics.step, metrics.value, bucket.low, bucket.high, metrics.time, bucket.n
    FROM (
        SELECT max(step) AS last_step, min(value) AS low, max(value) AS high, count(*) AS n
        FROM metrics
        WHERE series_id = :series AND step BETWEEN :first AND :newest
        GROUP BY (step - :first) / :width
    ) AS bucket
    JOIN metrics ON metrics.series_id = :series AND metrics.step = bucket.last_step
    ORDER BY metrics.step
    """
)

_LAST = text(
    """
    SELECT series.run_id, metrics.step, metrics.value, metrics.time
    FROM series
    JOIN stages ON stages.id = series.stage_id
    JOIN metrics ON metrics.series_id = series.id
        AND metrics.step = (SELECT max(step) FROM metrics WHERE series_id = series.id)
    WHERE series.key = :key AND series.run_id IN :runs
    ORDER BY stages.position
    """
).bindparams(bindparam("runs", expanding=True, type_=Series.run_id.type))


def last(session: Session, run_ids: Collection[RunId], key: str) -> Mapping[RunId, Last]:
    """The newest point of `key` in each run that logged it; of its last stage in plan order, where several did."""
    statement = _LAST.columns(Series.run_id, Metric.step, Metric.value, Metric.time)
    rows: Sequence[tuple[RunId, int, float | None, float]] = session.execute(
        statement, {"key": key, "runs": list(run_ids)}
    ).all()
    return {run_id: Last(step, value, _time(time)) for run_id, step, value, time in rows}


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
