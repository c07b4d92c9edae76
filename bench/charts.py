"""How long the curve of a metric takes to read, from ten thousand points to ten million: does the cost grow?

    python bench/charts.py [--most 10000000] [--mlflow-python PATH] [--mlflow-most 1000000] [--postgres URL]
                           [--only SQLite|PostgreSQL]

The series grows through our writer, and at each size `metrics.curve` is timed beside three peers on the same points:
one GROUP BY over the table (the same extremes and last values), a plain SELECT of everything, and the query behind
MLflow's own page (SQLite; it samples rows, so a spike may be missing). Each over the full range, and zoomed to a
hundredth and a ten-thousandth of it. Medians, caches warm. Our curve is compared with the GROUP BY's, bucket by bucket.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parts import mlflow_client
from parts.points import value
from parts.stores import POSTGRES, claimed_stages, fresh_store, size_of
from sqlalchemy import text
from sqlalchemy.orm import Session

from engine.errors import Unreachable
from engine.store import metrics
from engine.store.metrics import Curve, MetricWriter
from engine.store.tables import RunId

ROOM = 300
KINDS = ("SQLite", "PostgreSQL")
"""Buckets that the dashboard asks for."""
GROUP_BY = text(
    """
    SELECT metrics.step, metrics.value, bucket.low, bucket.high, bucket.n
    FROM (
        SELECT max(step) AS last_step, min(value) AS low, max(value) AS high, count(*) AS n
        FROM metrics
        WHERE series_id = 1 AND step >= :start AND step < :stop
        GROUP BY step / :width
    ) AS bucket
    JOIN metrics ON metrics.series_id = 1 AND metrics.step = bucket.last_step
    ORDER BY metrics.step
    """
)
SELECT = text("SELECT step, value FROM metrics WHERE series_id = 1 AND step >= :start AND step < :stop ORDER BY step")


def width_of(curve: Curve, start: int, stop: int) -> int:
    """The power of two that the curve's buckets are wide."""
    width = 1
    while not curve.exact and (stop - 1) // width - start // width + 1 > ROOM:
        width *= 2
    return width


def medians(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """(median seconds, the last answer); what takes long is not repeated."""
    times: list[float] = []
    answer = None
    while len(times) < repeats and sum(times) < 5.0:
        begin = time.perf_counter()
        answer = work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times), answer


def compare(session: Session, run_id: RunId, start: int, stop: int, repeats: int) -> list[float]:
    """Seconds of our curve, the GROUP BY and the SELECT. Raises SystemExit where ours is wrong."""
    ours, curve = medians(lambda: metrics.curve(session, run_id, "x", buckets=ROOM, start=start, stop=stop), repeats)
    window = {"start": start, "stop": stop}
    grouping = {**window, "width": width_of(curve, start, stop)}
    group, rows = medians(lambda: session.execute(GROUP_BY, grouping).all(), repeats)
    plain, everything = medians(lambda: session.execute(SELECT, window).all(), repeats)
    if [(p.step, p.value, p.low, p.high, p.count) for p in curve.points] != [tuple(row) for row in rows]:
        raise SystemExit(f"the curve over [{start}, {stop}) is not that of its points")
    if len(everything) != stop - start:
        raise SystemExit("points are missing")
    return [ours, group, plain]


def measure(kind: str, sizes: list[int], given: argparse.Namespace) -> dict[int, list[list[float]]]:
    """By size: for each range, seconds of each way."""
    found: dict[int, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name, fresh_store(kind, Path(name), given.postgres) as database:
        (claimed,), empty = claimed_stages(database, 1), size_of(database)
        writer = MetricWriter(database, claimed.run_id, claimed.stage_id, claimed.number, Path(name))
        step, spent = 0, 0.0
        for size in sizes:
            begin = time.perf_counter()
            for place in range(step, size):
                writer.log(place, {"x": value(0, place)})
                if place % 100_000 == 99_999:  # bounds what waits in memory
                    writer.flush()
            step = size
            writer.flush()
            spent += time.perf_counter() - begin
            with database.read() as session:
                found[size] = [
                    compare(session, claimed.run_id, start, stop, given.repeats) for start, stop in ranges(size)
                ]
        writer.close()
        print(f"{kind}: {step:,} points written in {spent:.0f} s ({step / spent:,.0f} a second, one series)")
        print(f"A point takes {(size_of(database) - empty) / step:.0f} bytes, its index and its buckets included\n")
    return found


def ranges(size: int) -> list[tuple[int, int]]:
    middle = size // 2 + 1
    return [(0, size), (middle, middle + size // 100), (middle, middle + max(size // 10_000, 1))]


def main() -> None:
    """Print a table for each database."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--mlflow-most", type=int, default=1_000_000, help="its rows take a while to put in place")
    parser.add_argument("--mlflow-python", default=sys.executable)
    parser.add_argument("--postgres", default=POSTGRES)
    parser.add_argument("--only", choices=KINDS, help="one of the databases")
    given = parser.parse_args()
    sizes = [size for size in (10**4, 10**5, 10**6, 10**7, 10**8) if size <= given.most]
    mlflow = {}
    if mlflow_client.version(given.mlflow_python) is not None:
        with tempfile.TemporaryDirectory() as name:
            for size in sizes:
                if size <= given.mlflow_most:
                    uri = f"sqlite:///{name}/{size}.db"
                    mlflow[size] = mlflow_client.ask(given.mlflow_python, "chart", uri, size, ROOM)
    for kind in KINDS if given.only is None else [given.only]:
        try:
            found = measure(kind, sizes, given)
        except Unreachable as error:
            print(f"{error}: its table is left out (--postgres names another)\n")
            continue
        print(f"Milliseconds of a curve of {ROOM} buckets at most, {kind}\n")
        print("| points | range | rlx | GROUP BY | SELECT | MLflow (SQLite) |\n| --- | --- | --- | --- | --- | --- |")
        for size, rows in found.items():
            for range_name, seconds in zip(("full", "1 / 100", "1 / 10,000"), rows, strict=True):
                peer = mlflow.get(size, {}).get({"full": "full", "1 / 100": "zoomed"}.get(range_name, ""))
                cells = [*seconds] + ([peer] if peer is not None else [])
                told = " | ".join(f"{cell * 1e3:,.1f}" for cell in cells) + (" |" if peer is None else "")
                print(f"| {size:,} | {range_name} | {told} |")
        print()


if __name__ == "__main__":
    main()
