from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from engine.store import metric_buckets, metrics
from engine.store.metric_buckets import FAN, LEVELS, LOOSE, Standing, cover
from engine.store.metrics import Curve, CurvePoint, MetricWriter
from engine.store.session import Database
from engine.store.stages import Claimed
from engine.store.tables import Metric, MetricBucket, Series
from tests.store.test_metrics import NEVER, Outage
from tests.store.walk import Queue

Values = dict[int, float | None]
_COUNTER: Iterator[int] = iter(range(10**9))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of four points or so, two to the next: a few dozen points reach the top."""
    for name, value in {"POINTS": 4, "LOOSE": 8, "FAN": 1}.items():
        monkeypatch.setattr(metric_buckets, name, value)


def _open(db: Database, claimed: Claimed, folder: Path) -> MetricWriter:
    return MetricWriter(db, claimed.run_id, claimed.stage_id, claimed.number, folder, flush_s=NEVER)


def _curve(db: Database, claimed: Claimed, key: str = "x", **which: int | None) -> Curve:
    with db.read() as session:
        return metrics.curve(session, claimed.run_id, key, **which)  # type: ignore[arg-type]


def _of(points: Values) -> tuple[int, float | None, float | None, float | None, int]:
    """(last step, its value, low, high, count) by hand."""
    finite = [value for value in points.values() if value is not None]
    last = max(points)
    return last, points[last], min(finite, default=None), max(finite, default=None), len(points)


def _by_hand(points: Values, buckets: int) -> list[tuple[int, float | None, float | None, float | None, int]]:
    """The curve of these points, from nothing but the points."""
    width = 1 if len(points) > buckets else 0
    while width and max(points) // width - min(points) // width + 1 > buckets:
        width *= 2
    grouped: dict[int, Values] = {}
    for step, value in sorted(points.items()):
        grouped.setdefault(step // width if width else step, {})[step] = value
    return [_of(group) for group in grouped.values()]


def _told(point: CurvePoint) -> tuple[int, float | None, float | None, float | None, int]:
    assert point.time == datetime.fromtimestamp(point.step / 4, UTC)
    return point.step, point.value, point.low, point.high, point.count


def _check_buckets(db: Database, claimed: Claimed, points: Values) -> int:
    """Every bucket below the mark is what its points say, and none is missing; how many there are."""
    with db.read() as session:
        series = session.scalars(select(Series).where(Series.stage_id == claimed.stage_id)).one()
        stored = session.scalars(select(MetricBucket).where(MetricBucket.series_id == series.id)).all()
    if series.mark is None or series.shift is None:
        assert not stored
        return 0
    rows = {(row.level, row.bucket): (row.last_step, row.low, row.high, row.count) for row in stored}
    wanted: dict[tuple[int, int], Values] = {}
    for step, value in points.items():
        for level in range(LEVELS) if step < series.mark else ():
            bucket = step >> (series.shift + metric_buckets.FAN * level)
            wanted.setdefault((level, bucket), {})[step] = value
    told = {place: _of(inside) for place, inside in wanted.items()}
    assert rows == {place: (last, low, high, count) for place, (last, _, low, high, count) in told.items()}
    return len(rows)


runs_of_steps = st.tuples(
    st.just("log"), st.integers(-40, 300), st.integers(1, 60), st.sampled_from([1, 1, 1, 2, 7, 1000]), st.integers(0, 9)
)
doings = st.lists(
    st.one_of(
        runs_of_steps,
        st.just(("on", 0, 30, 1, 3)),
        st.just(("flush",)),
        st.just(("again",)),
        st.just(("away",)),
        st.just(("back",)),
    ),
    min_size=3,
    max_size=25,
)
cuts = st.one_of(st.none(), st.integers(-60, 1000))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(doings=doings, buckets=st.integers(2, 40), cut=st.tuples(cuts, cuts))
@pytest.mark.usefixtures("small")
def test_however_points_come_the_curve_is_that_of_the_points(
    db: Database,
    queue: Queue,
    tmp_path: Path,
    doings: list[tuple[str, int, int, int, int]],
    buckets: int,
    cut: tuple[int | None, int | None],
) -> None:
    """Batches, repeats, steps gone back to, new writers as after a crash, and a database that is away for a while."""
    claimed = queue.claim(queue.submit(salt=str(next(_COUNTER))))
    outage = Outage(db)
    writer, points = _open(db, claimed, tmp_path), Values()
    for doing, *how in [*doings, ("back",)]:
        if doing in ("log", "on"):
            first, count, stride, salt = how
            first = first if doing == "log" else max(points, default=0) + 1
            for place in range(count):
                step, value = first + place * stride, float((place * 7 + salt) % 11 - 5)
                points[step] = None if value == 4 else value
                writer.log(step, {"x": float("nan") if value == 4 else value}, time=step / 4)
        elif doing == "again":
            writer.close()
            writer = _open(db, claimed, tmp_path)
        else:
            outage.on = doing == "away" or (outage.on and doing == "flush")
            writer.flush()
            if points and not outage.on:
                _check_buckets(db, claimed, points)
    assert writer.close()
    start, stop = cut
    within = {s: v for s, v in points.items() if (start is None or s >= start) and (stop is None or s < stop)}
    curve = _curve(db, claimed, buckets=buckets, start=start, stop=stop)
    assert [_told(point) for point in curve.points] == (_by_hand(within, buckets) if within else [])
    assert curve.exact == (len(within) <= buckets)


def test_a_long_series_is_read_from_its_buckets(db: Database, queue: Queue, tmp_path: Path) -> None:
    """At the real sizes: twenty thousand points, of which a third is written again as after a resume."""
    claimed = queue.claim(queue.submit())
    points: Values = {}
    for steps, sign in ((range(14_000), 1.0), (range(9_000, 20_000), -1.0)):
        writer = _open(db, claimed, tmp_path)
        for step in steps:
            points[step] = sign * (step * 7919 % 1013)
            writer.log(step, {"x": points[step]}, time=step / 4)
            if step % 1500 == 0:
                writer.flush()
        writer.close()
    assert _check_buckets(db, claimed, points) > 19_000 / 256
    for buckets, start, stop in ((10, None, None), (50, None, None), (7, 300, 15_001), (300, 5_000, 18_000)):
        within = {s: v for s, v in points.items() if (start or 0) <= s < (stop or 10**9)}
        curve = _curve(db, claimed, buckets=buckets, start=start, stop=stop)
        assert [_told(point) for point in curve.points] == _by_hand(within, buckets)

    # Were the points read, they would not be missed once they are gone.
    with db.write() as session:
        series = session.scalars(select(Series)).one()
        last = {point.step for point in _curve(db, claimed, buckets=10).points}
        before = _curve(db, claimed, buckets=10)
        gone = Metric.__table__.c
        session.execute(
            Metric.__table__.delete().where(  # type: ignore[attr-defined]
                gone.step > 100, gone.step < (series.mark or 0), gone.step.not_in(last)
            )
        )
    assert _curve(db, claimed, buckets=10) == before


def test_short_series_have_no_buckets(db: Database, queue: Queue, tmp_path: Path) -> None:
    claimed = queue.claim(queue.submit())
    writer = _open(db, claimed, tmp_path)
    for step in range(1000):
        writer.log(step, {"x": 1.0})
    writer.close()
    with db.read() as session:
        assert session.scalars(select(MetricBucket)).all() == []
        assert session.scalars(select(Series.mark)).all() == [None]


def test_one_step_logged_over_and_over_is_one_point(db: Database, queue: Queue, tmp_path: Path) -> None:
    claimed = queue.claim(queue.submit())
    writer = _open(db, claimed, tmp_path)
    for value in range(1200):
        writer.log(3, {"x": float(value)})
        if value % 200 == 0:
            writer.flush()
    writer.close()
    with db.write() as session:
        standing = metric_buckets.standings(session, claimed.stage_id, ["x"])["x"]
        standing.loose = metric_buckets.LOOSE
        metric_buckets.keep_up(session, [(standing, [3])])
    assert [(point.step, point.value) for point in _curve(db, claimed).points] == [(3, 1199.0)]


def test_a_reader_beside_the_writer_never_sees_half_a_batch(db: Database, queue: Queue, tmp_path: Path) -> None:
    claimed = queue.claim(queue.submit())
    writer = _open(db, claimed, tmp_path)
    done = threading.Event()

    def write() -> None:
        for step in range(12_000):
            writer.log(step, {"x": float(step)}, time=step / 4)
            if step % 700 == 699:
                writer.flush()
        writer.close()
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    ended = False
    while not ended:
        ended = done.is_set()
        points = _curve(db, claimed, buckets=20).points
        if points:
            assert sum(point.count for point in points) == points[-1].step + 1
            assert [point.high for point in points] == [float(point.step) for point in points]
            assert all(later.low == before.step + 1 for before, later in pairwise(points))
    thread.join()
    assert points[-1].step == 11_999


@given(
    st.integers(-(2**40), 2**40),
    st.integers(0, 2**34),
    st.one_of(st.none(), st.integers(0, 12)),
    st.integers(-(2**40), 2**40),
    st.integers(0, 30),
)
def test_pieces_lie_end_to_end_and_are_few(
    first: int, length: int, shift: int | None, mark: int, narrowest: int
) -> None:
    mark = mark if shift is None else mark >> shift << shift
    pieces = cover(first, first + length, shift, None if shift is None else mark, narrowest)
    at, rows = first, 0
    for piece in pieces:
        assert piece.first << piece.shift == at
        at = piece.end << piece.shift
        assert at > piece.first << piece.shift
        if piece.level is not None:
            assert piece.shift == (shift or 0) + FAN * piece.level <= narrowest
            assert at <= mark
            rows += piece.end - piece.first
    assert at == first + length
    if shift is not None and shift <= narrowest and first + length <= mark:
        loose = sum(piece.end - piece.first for piece in pieces if piece.level is None)
        assert loose < 2 << shift
        widest = max(shift + FAN * level for level in range(LEVELS) if shift + FAN * level <= narrowest)
        assert rows <= 2 * LEVELS * 2**FAN + (length >> widest)


def test_one_step_far_out_does_not_widen_the_buckets(db: Database, queue: Queue, tmp_path: Path) -> None:
    claimed = queue.claim(queue.submit())
    writer = _open(db, claimed, tmp_path)
    points: Values = {}
    for step in [*range(1023), 10**12, *range(1023, 5000)]:
        points[step] = float(step % 97)
        writer.log(step, {"x": float(step % 97)})
        if step % 1000 == 0:
            writer.flush()
    writer.close()
    assert _check_buckets(db, claimed, points) >= 5000 // 256
    with db.read() as session:
        assert session.scalars(select(Series.shift)).one() == 8


def test_standings_count_what_no_bucket_holds(db: Database, queue: Queue, tmp_path: Path) -> None:
    claimed = queue.claim(queue.submit())
    writer = _open(db, claimed, tmp_path)
    for step in range(3000):
        writer.log(step, {"x": 0.0, "short": 0.0} if step < 10 else {"x": 0.0})
    writer.close()
    with db.read() as session:
        found = metric_buckets.standings(session, claimed.stage_id, ["x", "short", "absent"])
    long, short = found.pop("x"), found.pop("short")
    assert found == {}
    assert short == Standing(short.id, None, None, 10, 9)
    assert long.shift == 8
    assert long.mark is not None
    assert long.mark % 256 == 0
    assert long.newest == 2999
    assert long.loose == 3000 - long.mark < 2 * LOOSE
