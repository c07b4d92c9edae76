"""Metrics: points written in batches, curves read in buckets.

A point is (series, step, value, time) in a table clustered by (series, step); a series is a key of a stage.
`MetricWriter` (in `metric_writer`, handed on here) writes them from a background thread, and keeps `metric_buckets`
of long series beside them, which curves read instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import bindparam, select, text
from sqlalchemy.orm import Session

from engine.store.metric_buckets import Piece, cover
from engine.store.metric_writer import MetricWriter
from engine.store.tables import Metric, RunId, Series, Stage
from engine.store.upsert import dialect_of

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
    """`key` over steps (from `start`, before `stop`): every point, or where there are too many, `buckets` at most.

    The width of buckets is the least power of two that will do and they begin at its multiples, so that they keep
    their places while a run goes on. Every bucket has the lowest, highest and last value: a spike is never lost.
    Where several stages logged the key, it is the last one's in plan order, unless `stage` names one. Empty for an
    unknown key. `buckets` is two or more. Reads about as much for ten million points as for a thousand.
    """
    query = (
        select(Series.id, Series.shift, Series.mark, Stage.name)
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
    if dialect_of(session) == "postgresql":
        session.execute(_ALONG_THE_INDEX)
    within = [Metric.series_id == found.id]
    if start is not None:
        within.append(Metric.step >= start)
    if stop is not None:
        within.append(Metric.step < stop)
    points = session.execute(
        select(Metric.step, Metric.value, Metric.time).where(*within).order_by(Metric.step).limit(buckets + 1)
    ).all()
    if len(points) <= buckets:
        exact = tuple(CurvePoint(step, value, value, value, _time(time), 1) for step, value, time in points)
        return Curve(key, found.name, True, exact)
    first = points[0].step
    newest = session.scalars(select(Metric.step).where(*within).order_by(Metric.step.desc()).limit(1)).one()
    shift = _shift(first, newest, buckets)
    pieces = cover(first, newest + 1, found.shift, found.mark, shift)
    return Curve(key, found.name, False, tuple(_bucketed(session, found.id, pieces, shift)))


def _shift(first: int, newest: int, buckets: int) -> int:
    """log2 of the narrowest width whose multiples cut these steps into no more than `buckets`."""
    if buckets < 2:
        raise ValueError(f"a curve has two buckets or more, not {buckets}")
    shift = 0
    while (newest >> shift) - (first >> shift) >= buckets:
        shift += 1
    return shift


def _bucketed(session: Session, series_id: int, pieces: Sequence[Piece], shift: int) -> Iterator[CurvePoint]:
    """Every bucket of 2^`shift` steps, put together from the pieces."""
    parts = [
        (_POINTS if piece.level is None else _BUCKETS).format(by=shift - piece.shift, place=place)
        for place, piece in enumerate(pieces)
    ]
    values: dict[str, int | None] = {"series": series_id}
    for place, piece in enumerate(pieces):
        values |= {f"level{place}": piece.level, f"first{place}": piece.first, f"end{place}": piece.end}
    rows = session.execute(text(_TOGETHER.format(parts=" UNION ALL ".join(parts))), values)
    for step, value, low, high, time, count in rows:
        yield CurvePoint(step, value, low, high, _time(time), int(count))


# Before its statistics know the series, PostgreSQL takes it for short: it would collect all of it and sort that.
_ALONG_THE_INDEX = text("SET LOCAL enable_bitmapscan = off")

# In words and not in SQLAlchemy's: a page of fifty curves would spend most of its time on compiling them.
_POINTS = """
    SELECT step >> {by} AS place, max(step) AS last_step, min(value) AS low, max(value) AS high, count(*) AS n
    FROM metrics
    WHERE series_id = :series AND step >= :first{place} AND step < :end{place}
    GROUP BY 1
"""
_BUCKETS = """
    SELECT bucket >> {by} AS place, max(last_step) AS last_step, min(low) AS low, max(high) AS high, sum(count) AS n
    FROM metric_buckets
    WHERE series_id = :series AND level = :level{place} AND bucket >= :first{place} AND bucket < :end{place}
    GROUP BY 1
"""
# The last point of each bucket by a subquery of its own: as a join, PostgreSQL may read the whole series for it.
_TOGETHER = """
    SELECT bucket.last_step,
        (SELECT value FROM metrics WHERE series_id = :series AND step = bucket.last_step) AS value,
        bucket.low, bucket.high,
        (SELECT time FROM metrics WHERE series_id = :series AND step = bucket.last_step) AS time,
        bucket.n
    FROM (
        SELECT max(last_step) AS last_step, min(low) AS low, max(high) AS high, sum(n) AS n
        FROM ({parts}) AS part
        GROUP BY place
    ) AS bucket
    ORDER BY bucket.last_step
"""

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
