"""Summaries of long series, so that a chart reads hundreds of rows where millions of points are stored.

A series starts as loose points. Once it has many, every step below its `mark` is also counted in a bucket of
2^shift steps (level 0), 32 of which make a bucket of level 1, and 32 of those one of level 2. Whoever writes
points calls `keep_up` in the same transaction: each bucket below the mark that they touch is computed anew from
what is stored, so a step that is late, repeated or gone back to needs no case of its own, and what a reader sees
is exact at every commit. `metrics` turns buckets into curves; whoever deletes a series deletes its buckets too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.orm import Session

from engine.store.columns import table_of
from engine.store.pace import give_way, resting_within
from engine.store.tables import Metric, Series, StageId

T = TypeVar("T")

POINTS = 256
"""Points that a bucket of level 0 is meant to hold; it holds as many where steps keep their spacing."""
LOOSE = 4 * POINTS
"""Points that may lie beyond the mark before it moves on."""
FAN = 5
"""log2 of the buckets of one level that make one of the next."""
LEVELS = 3
_WIDEST = 40
_AT_ONCE = 2
_BEFORE_ALL = -(2**63)


@dataclass(slots=True)
class Standing:
    """How far one series is summarised. Its writer, of which there is one at a time, keeps it between batches."""

    id: int
    shift: int | None
    mark: int | None
    loose: int
    """Points at the mark or beyond it, roughly: what was written twice is counted twice."""
    newest: int
    """The highest step."""


class Span(NamedTuple):
    """Neighbouring buckets of one level of one series: `first` and those after it, before `end`."""

    series: int
    shift: int
    """Of level 0, whichever level the span is on."""
    first: int
    end: int


class Piece(NamedTuple):
    """A part of a range of steps and where to read it: on a level, or among the points where it is None."""

    level: int | None
    shift: int
    """log2 of the steps in one of its buckets; 0 for points."""
    first: int
    """A bucket of that level, or a step."""
    end: int


def standings(session: Session, stage_id: StageId, keys: Collection[str]) -> dict[str, Standing]:
    """How far the series of these keys of a stage are summarised, by key."""
    loose = (
        select(func.count())
        .where(Metric.series_id == Series.id, Metric.step >= func.coalesce(Series.mark, _BEFORE_ALL))
        .correlate(Series)
        .scalar_subquery()
    )
    newest = select(func.max(Metric.step)).where(Metric.series_id == Series.id).correlate(Series).scalar_subquery()
    rows = session.execute(
        select(Series.key, Series.id, Series.shift, Series.mark, loose, func.coalesce(newest, _BEFORE_ALL)).where(
            Series.stage_id == stage_id, Series.key.in_(keys)
        )
    )
    return {key: Standing(*standing) for key, *standing in rows}


def keep_up(session: Session, written: Iterable[tuple[Standing, Collection[int]]]) -> None:
    """Make the buckets right for the steps just written to each series; in the transaction that wrote them.

    Changes the standings: where the transaction is rolled back, they must be read again.
    """
    spans: list[Span] = []
    due: list[Standing] = []
    for standing, steps in written:
        spans += _touched(standing, steps)
        give_way()
        if standing.loose >= LOOSE:
            due.append(standing)
    first_ones = any(standing.mark is None for standing in due)
    with resting_within() if first_ones else nullcontext():  # most statements are compiled then
        passed = [(standing, span) for standing in due if (span := _move_mark(session, standing)) is not None]
        spans += [span for _, span in passed]
        for some in _some(passed):
            values = [{"series": one.id, "to_shift": one.shift, "to_mark": one.mark} for one, _ in some]
            session.execute(_MARK, values)
        _rebuild(session, spans)


def cover(first: int, end: int, shift: int | None, mark: int | None, narrowest: int) -> list[Piece]:
    """Where to read the steps from `first`, before `end`, for buckets of 2^`narrowest` steps: few pieces, few rows."""
    levels = [] if shift is None else [level for level in range(LEVELS) if shift + FAN * level <= narrowest]

    def split(first: int, end: int, levels: list[int]) -> list[Piece]:
        if first >= end:
            return []
        if not levels or shift is None or mark is None:
            return [Piece(None, 0, first, end)]
        *narrower, level = levels
        width = shift + FAN * level
        left, right = -(-first >> width), min(end, mark) >> width
        if left >= right:
            return split(first, end, narrower)
        before, after = split(first, left << width, narrower), split(right << width, end, narrower)
        return [*before, Piece(level, width, left, right), *after]

    return split(first, end, levels)


def _touched(standing: Standing, steps: Collection[int]) -> list[Span]:
    """The buckets below the mark that hold these steps."""
    standing.newest = max(standing.newest, max(steps))
    if standing.shift is None or standing.mark is None or min(steps) >= standing.mark:
        standing.loose += len(steps)
        return []
    mark, shift = standing.mark, standing.shift
    below = [step for step in steps if step < mark]
    standing.loose += len(steps) - len(below)
    return _joined([Span(standing.id, shift, step >> shift, (step >> shift) + 1) for step in below])


def _move_mark(session: Session, standing: Standing) -> Span | None:
    """Let the mark follow the newest step; the buckets that it passes, if there are any."""
    standing.loose = 0
    if standing.shift is None or standing.mark is None:
        # The spacing where the series begins: one step far out must not make every bucket wide.
        first, later = (session.scalar(_STEP_AT, {"series": standing.id, "place": place}) for place in (0, 2 * POINTS))
        give_way()
        if first is None or later is None:
            return None
        standing.shift = min(max((later - first) // 2, 1).bit_length() - 1, _WIDEST)
        standing.mark = first >> standing.shift << standing.shift
    passed = Span(standing.id, standing.shift, standing.mark >> standing.shift, standing.newest >> standing.shift)
    if passed.first >= passed.end:
        return None
    standing.mark = passed.end << standing.shift
    return passed


def _rebuild(session: Session, spans: Sequence[Span]) -> None:
    """Compute these buckets of level 0 from the points, and all above them from those below."""
    for some in _some(spans):
        session.execute(
            _FROM_POINTS,
            [
                {"series": series, "shift": shift, "first": first << shift, "end": end << shift}
                for series, shift, first, end in some
            ],
        )
    for level in range(1, LEVELS):
        spans = _joined(
            [Span(series, shift, first >> FAN, (end - 1 >> FAN) + 1) for series, shift, first, end in spans]
        )
        for some in _some(spans):
            session.execute(
                _FROM_BUCKETS,
                [
                    {"series": series, "level": level, "fan": FAN, "first": first << FAN, "end": end << FAN}
                    for series, _, first, end in some
                ],
            )


def _some(things: Sequence[T]) -> Iterator[Sequence[T]]:
    """A few at a time, giving way to the training loop after each."""
    for begin in range(0, len(things), _AT_ONCE):
        yield things[begin : begin + _AT_ONCE]
        give_way()


def _joined(spans: Iterable[Span]) -> list[Span]:
    """The same buckets, each in one span only, neighbours in one."""
    joined: list[Span] = []
    for span in sorted(spans):
        if joined and joined[-1].series == span.series and joined[-1].end >= span.first:
            joined[-1] = joined[-1]._replace(end=max(joined[-1].end, span.end))
        else:
            joined.append(span)
    return joined


_STEP_AT = text("SELECT step FROM metrics WHERE series_id = :series ORDER BY step LIMIT 1 OFFSET :place")
_SERIES = table_of(Series)
_MARK = (
    update(_SERIES)
    .where(_SERIES.c.id == bindparam("series"))
    .values(shift=bindparam("to_shift"), mark=bindparam("to_mark"))
)
_INTO = "INSERT INTO metric_buckets (series_id, level, bucket, last_step, count, low, high) "
_UPSERT = (
    " ON CONFLICT (series_id, level, bucket) DO UPDATE"
    " SET last_step = excluded.last_step, count = excluded.count, low = excluded.low, high = excluded.high"
)
_FROM_POINTS = text(
    _INTO
    + "SELECT series_id, 0, step >> :shift, max(step), count(*), min(value), max(value)"
    + " FROM metrics WHERE series_id = :series AND step >= :first AND step < :end GROUP BY 1, 3"
    + _UPSERT
)
_FROM_BUCKETS = text(
    _INTO
    + "SELECT series_id, level + 1, bucket >> :fan, max(last_step), sum(count), min(low), max(high)"
    + " FROM metric_buckets WHERE series_id = :series AND level = :level - 1 AND bucket >= :first AND bucket < :end"
    + " GROUP BY 1, 2, 3"
    + _UPSERT
)
