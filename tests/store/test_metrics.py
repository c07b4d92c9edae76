from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, select, text
from sqlalchemy.exc import OperationalError

from engine.errors import StaleAttempt
from engine.store import metric_writer, metrics, runs
from engine.store.metric_spool import MetricSpool
from engine.store.metrics import MetricWriter
from engine.store.session import Database
from engine.store.stages import Claimed
from engine.store.tables import Metric, Run, RunId, Series
from tests.store.walk import Clock, Queue

NEVER = 1e6
"""Seconds between two rounds of a writer that only writes when it is told to."""


@pytest.fixture
def claimed(queue: Queue) -> Claimed:
    return queue.claim(queue.submit())


@pytest.fixture
def writer(db: Database, claimed: Claimed, tmp_path: Path) -> Iterator[MetricWriter]:
    writer = _writer(db, claimed, tmp_path)
    yield writer
    writer._closing = True
    writer._wake.set()
    writer._thread.join()


def _writer(db: Database, claimed: Claimed, folder: Path) -> MetricWriter:
    return MetricWriter(db, claimed.run_id, claimed.stage_id, claimed.number, folder / "spool", flush_s=NEVER)


def _values(db: Database, run_id: RunId, key: str) -> dict[int, float | None]:
    with db.read() as session:
        curve = metrics.curve(session, run_id, key, buckets=100_000)
    assert curve.exact
    return {point.step: point.value for point in curve.points}


class Outage:
    """The database does not answer while this is on."""

    def __init__(self, db: Database) -> None:
        self.on = False
        event.listen(db.engine, "before_cursor_execute", self._refuse)

    def _refuse(self, connection: Any, *_: Any) -> None:
        if self.on:
            raise OperationalError("INSERT", {}, _NoAnswer("unable to open database file"), connection_invalidated=True)


class _NoAnswer(sqlite3.OperationalError):
    """What either driver's failure would look like."""

    sqlstate = "08006"


def test_all_that_was_logged_is_read_back(db: Database, claimed: Claimed, writer: MetricWriter) -> None:
    for step in range(5000):
        writer.log(step, {"loss": step / 7, "reward": -step * 1e300})
    assert writer.close()
    assert _values(db, claimed.run_id, "loss") == {step: step / 7 for step in range(5000)}
    assert _values(db, claimed.run_id, "reward") == {
        step: -step * 1e300 if math.isfinite(-step * 1e300) else None for step in range(5000)
    }
    with db.read() as session:
        assert metrics.keys(session, claimed.run_id) == ["loss", "reward"]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025, 2001])
def test_no_batch_size_loses_a_point(db: Database, claimed: Claimed, writer: MetricWriter, count: int) -> None:
    for step in range(count):
        writer.log(step, {"x": float(step)})
    writer.close()
    assert _values(db, claimed.run_id, "x") == {step: float(step) for step in range(count)}


def test_a_flush_is_enough(db: Database, claimed: Claimed, writer: MetricWriter) -> None:
    writer.log(1, {"x": 0.5}, time=1000.25)
    writer.flush()
    with db.read() as session:
        (point,) = metrics.curve(session, claimed.run_id, "x").points
    assert (point.value, point.time) == (0.5, datetime.fromtimestamp(1000.25, UTC))


@pytest.mark.parametrize("keys", [1, 3, 1200, 25_000])
def test_no_shape_of_batch_loses_a_point(db: Database, claimed: Claimed, writer: MetricWriter, keys: int) -> None:
    """Many short series, one long one, and a call with more values than a transaction is meant to take."""
    steps = range(-(-30_000 // keys))
    for step in steps:
        writer.log(step, {f"k{key}": key + step / 8 for key in range(keys)}, time=step / 4)
    writer.close()
    with db.read() as session:
        rows = session.execute(
            select(Series.key, Metric.step, Metric.value, Metric.time).join(Metric, Metric.series_id == Series.id)
        ).all()
    assert len(rows) == keys * len(steps)
    assert {tuple(row) for row in rows} == {
        (f"k{key}", step, key + step / 8, step / 4) for key in range(keys) for step in steps
    }


def test_the_background_thread_delivers_by_itself(db: Database, claimed: Claimed, tmp_path: Path) -> None:
    delivered = threading.Event()
    event.listen(db.engine, "commit", lambda _: delivered.set())
    writer = MetricWriter(db, claimed.run_id, claimed.stage_id, 1, tmp_path, flush_s=0.01)
    writer.log(0, {"x": 1.0})
    assert delivered.wait(60)
    writer.close()
    assert _values(db, claimed.run_id, "x") == {0: 1.0}


def test_a_thread_that_takes_its_time_keeps_other_writers_waiting_for_less(
    db: Database, claimed: Claimed, writer: MetricWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    event.listen(db.engine, "commit", lambda connection: commits.append(1))
    per_round = []
    for takes_its_time in (False, True):
        monkeypatch.setattr(metric_writer, "patient", lambda patient=takes_its_time: patient)
        for step in range(10_000):
            writer.log(step, {"loss": float(step)})
        commits.clear()
        writer.flush()
        per_round.append(len(commits))

    assert per_round == [1, 5]
    assert len(_values(db, claimed.run_id, "loss")) == 10_000


def test_a_step_logged_again_replaces_the_point(db: Database, claimed: Claimed, writer: MetricWriter) -> None:
    for value in (1.0, 2.0):
        writer.log(5, {"x": value})
    writer.flush()
    writer.log(5, {"x": 3.0})
    writer.log(6, {"x": float("nan")})
    writer.flush()
    assert _values(db, claimed.run_id, "x") == {5: 3.0, 6: None}


def test_what_is_no_number_is_left_out_and_nothing_is_raised(
    db: Database, claimed: Claimed, writer: MetricWriter
) -> None:
    class Number:
        def __float__(self) -> float:
            return 2.5

    class Mine:
        def __float__(self) -> float:
            raise RuntimeError("not now")

    writer.log(1, {"int": 3, "own": Number(), "true": True, "text": "high", "none": None, "mine": Mine()})  # type: ignore[dict-item]
    writer.log("one", {"int": 9})  # type: ignore[arg-type]
    writer.log(2**63, {"int": 9})
    writer.log(2, {"long" * 100: 1.0, "nul\x00": 1.0})
    writer.close()
    with db.read() as session:
        assert metrics.keys(session, claimed.run_id) == sorted(["int", "own", "true", ("long" * 100)[:255], "nul␀"])
    assert _values(db, claimed.run_id, "int") == {1: 3.0}


def test_values_are_taken_when_they_are_logged(db: Database, claimed: Claimed, writer: MetricWriter) -> None:
    values = {"x": 1.0}
    writer.log(1, values)
    values["x"] = 2.0
    writer.flush()
    assert _values(db, claimed.run_id, "x") == {1: 1.0}


def test_many_threads_may_log(db: Database, claimed: Claimed, writer: MetricWriter) -> None:
    def work(name: str) -> None:
        for step in range(500):
            writer.log(step, {name: float(step)})
            if step % 100 == 0:
                writer.flush()

    threads = [threading.Thread(target=work, args=(f"k{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    for n in range(4):
        assert _values(db, claimed.run_id, f"k{n}") == {step: float(step) for step in range(500)}


def test_writers_of_many_stages_lose_nothing(db: Database, queue: Queue, tmp_path: Path) -> None:
    run = queue.submit("a", "b", "c", "d")
    claims = [queue.claim(run, name) for name in "abcd"]

    def work(claimed: Claimed) -> None:
        writer = MetricWriter(db, claimed.run_id, claimed.stage_id, 1, tmp_path, flush_s=0.001)
        for step in range(1000):
            writer.log(step, {"x": float(step)})
        writer.close()

    threads = [threading.Thread(target=work, args=(claimed,)) for claimed in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert session.scalar(text("SELECT count(*) FROM metrics")) == 4000


def test_a_stale_attempt_writes_nothing_more(
    db: Database, queue: Queue, claimed: Claimed, clock: Clock, writer: MetricWriter
) -> None:
    writer.log(1, {"x": 1.0})
    writer.flush()
    clock.advance(20)
    queue.expire()
    writer.log(2, {"x": 2.0})
    with pytest.raises(StaleAttempt):
        writer.flush()
    assert writer.stale is not None
    writer.log(3, {"x": 3.0})
    with pytest.raises(StaleAttempt):
        writer.close()
    assert _values(db, claimed.run_id, "x") == {1: 1.0}
    assert not writer.spooled


def test_while_the_database_is_away_points_wait_on_the_disk(
    db: Database, claimed: Claimed, writer: MetricWriter
) -> None:
    outage = Outage(db)
    writer.log(1, {"x": 1.0})
    writer.flush()
    outage.on = True
    writer.log(1, {"x": 1.5, "new": 0.1})
    writer.log(2, {"x": 2.0})
    writer.flush()
    assert writer.spooled
    writer.log(3, {"x": float("inf")})
    writer.flush()
    outage.on = False
    writer.log(2, {"x": 2.5})  # newer than what is spooled
    writer.flush()
    assert not writer.spooled
    assert _values(db, claimed.run_id, "x") == {1: 1.5, 2: 2.5, 3: None}
    assert _values(db, claimed.run_id, "new") == {1: 0.1}


def test_what_an_attempt_could_not_deliver_the_next_one_does(
    db: Database, queue: Queue, claimed: Claimed, clock: Clock, tmp_path: Path
) -> None:
    outage = Outage(db)
    first = _writer(db, claimed, tmp_path)
    outage.on = True
    first.log(1, {"x": 1.0})
    first.log(2, {"x": 2.0})
    assert first.close() is False
    outage.on = False
    clock.advance(20)
    queue.expire()
    with db.read() as session:
        assert metrics.keys(session, claimed.run_id) == []

    second = _writer(db, queue.claim(_run_of(queue, claimed)), tmp_path)
    second.log(2, {"x": 2.5})
    assert second.close() is True

    assert _values(db, claimed.run_id, "x") == {1: 1.0, 2: 2.5}


def _run_of(queue: Queue, claimed: Claimed) -> Run:
    with queue.db.read() as session:
        return runs.find(session, claimed.handle)


def test_a_patient_close_waits_for_the_database(db: Database, claimed: Claimed, tmp_path: Path) -> None:
    outage = Outage(db)
    writer = MetricWriter(db, claimed.run_id, claimed.stage_id, 1, tmp_path, flush_s=0.005)
    outage.on = True
    writer.log(1, {"x": 1.0})
    writer.flush()
    threading.Timer(0.05, lambda: setattr(outage, "on", False)).start()
    assert writer.close(patience_s=60) is True
    assert _values(db, claimed.run_id, "x") == {1: 1.0}


def test_a_line_torn_by_a_crash_costs_only_itself(tmp_path: Path, claimed: Claimed) -> None:
    spool = MetricSpool(tmp_path / "spool", claimed.stage_id)
    spool.append({"x": {1: (1.0, 0.0)}})
    with spool._file.open("ab") as file:
        file.write(b'{"x": [[2, 2.')
    spool.append({"x": {3: (None, 0.0)}})
    found = []
    while (batch := spool.first()) is not None:
        found.append(batch.points)
        spool.strike_off(batch)
    assert found == [{"x": {1: (1.0, 0.0)}}, {}, {"x": {3: (None, 0.0)}}]
    assert not os.listdir(tmp_path / "spool")


def _fill(db: Database, claimed: Claimed, key: str, points: dict[int, float | None]) -> None:
    with db.write() as session:
        series = session.scalars(
            insert(Series).values(run_id=claimed.run_id, stage_id=claimed.stage_id, key=key).returning(Series.id)
        ).one()
        if points:
            rows = [{"series_id": series, "step": s, "value": v, "time": s / 2} for s, v in points.items()]
            session.execute(insert(Metric), rows)


values = st.one_of(st.none(), st.floats(-100, 100))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    points=st.dictionaries(st.integers(-50, 5000), values, min_size=1, max_size=80),
    buckets=st.integers(2, 30),
    cut=st.tuples(st.one_of(st.none(), st.integers(-60, 5100)), st.one_of(st.none(), st.integers(-60, 5100))),
)
def test_buckets_are_those_of_a_plain_loop(
    db: Database, queue: Queue, points: dict[int, float | None], buckets: int, cut: tuple[int | None, int | None]
) -> None:
    counter = next(_COUNTER)
    claimed = queue.claim(queue.submit(salt=str(counter)))
    _fill(db, claimed, "x", points)
    start, stop = cut
    with db.read() as session:
        curve = metrics.curve(session, claimed.run_id, "x", buckets=buckets, start=start, stop=stop)

    within = {s: v for s, v in points.items() if (start is None or s >= start) and (stop is None or s < stop)}
    assert len(curve.points) <= buckets
    assert curve.exact == (len(within) <= buckets)
    assert sum(point.count for point in curve.points) == len(within)
    steps = [point.step for point in curve.points]
    assert steps == sorted(steps)
    if within:
        assert steps[-1] == max(within)
    for before, point in zip([-(10**9), *steps], curve.points, strict=False):
        inside = {s: v for s, v in within.items() if before < s <= point.step}
        finite = [v for v in inside.values() if v is not None]
        assert point.count == len(inside)
        assert point.value == inside[point.step]
        assert (point.low, point.high) == ((min(finite), max(finite)) if finite else (None, None))
        assert point.time == datetime.fromtimestamp(point.step / 2, UTC)


_COUNTER: Iterator[int] = iter(range(10**9))


def test_buckets_are_of_equal_width(db: Database, claimed: Claimed) -> None:
    _fill(db, claimed, "x", {step: float(step) for step in range(1000)})
    with db.read() as session:
        points = metrics.curve(session, claimed.run_id, "x", buckets=10).points
    # 64 is too narrow: it makes 16 of them.
    assert [(p.low, p.high, p.value, p.count) for p in points] == [
        *((128.0 * n, 128.0 * n + 127, 128.0 * n + 127, 128) for n in range(7)),
        (896.0, 999.0, 999.0, 104),
    ]


def test_a_key_of_two_stages_is_the_later_ones_unless_said(db: Database, queue: Queue) -> None:
    run = queue.submit("model", "train<model")
    model = queue.claim(run, "model")
    _fill(db, model, "loss", {500: 1.0})
    queue.finish(model)
    train = queue.claim(run, "train")
    _fill(db, train, "loss", {10: 2.0})
    with db.read() as session:

        def read(**which: str) -> tuple[str, list[int]]:
            curve = metrics.curve(session, train.run_id, "loss", **which)  # type: ignore[arg-type]
            return curve.stage, [point.step for point in curve.points]

        assert read() == ("train", [10])
        assert read(stage="model") == ("model", [500])
        assert read(stage="nobody") == ("nobody", [])
        assert [found.stage for found in metrics.series(session, train.run_id)] == ["model", "train"]
        assert metrics.last(session, [train.run_id], "loss")[train.run_id].step == 10


def test_the_last_point_of_many_runs(db: Database, queue: Queue) -> None:
    claims = [queue.claim(queue.submit(salt=str(n))) for n in range(3)]
    for n, claimed in enumerate(claims[:2]):
        _fill(db, claimed, "score", {step: float(n) for step in range(5 + n)})
    with db.read() as session:
        found = metrics.last(session, [claimed.run_id for claimed in claims], "score")
        assert metrics.last(session, [], "score") == {}
        assert metrics.curve(session, claims[2].run_id, "score").points == ()
    assert {run_id: (point.step, point.value) for run_id, point in found.items()} == {
        claims[0].run_id: (4, 0.0),
        claims[1].run_id: (5, 1.0),
    }
