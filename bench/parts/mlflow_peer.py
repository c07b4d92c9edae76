"""MLflow's side of the metric benchmarks, run by the interpreter that has MLflow; one line of JSON on stdout.

mlflow_peer.py version
mlflow_peer.py write  URI KEYS STEPS      log_batch, 1,000 points at a time, as many as it takes
mlflow_peer.py loop   URI KEYS STEPS      `mlflow.log_metrics` once a step, as a training loop does
mlflow_peer.py chart  URI POINTS ROOM     one series, then what its own page asks for, full range and a hundredth
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
BATCH = 1000


def _store(uri: str) -> tuple[Any, str]:
    from mlflow.store.tracking.file_store import FileStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri, "/tmp") if "://" in uri else FileStore(uri)
    experiment = store.create_experiment("bench")
    run = store.create_run(experiment, "bench", int(time.time() * 1000), [], "bench")
    return store, run.info.run_id


def write(uri: str, keys: int, steps: int) -> dict[str, Any]:
    """Points a second, all read back."""
    from mlflow.entities import Metric
    from points import logged

    store, run_id = _store(uri)
    rows = logged(keys, steps)
    cpu, begin = time.process_time(), time.perf_counter()
    points = (
        Metric(key, value, 1_000 + step, step) for step, values in enumerate(rows) for key, value in values.items()
    )
    while batch := list(itertools.islice(points, BATCH)):
        store.log_batch(run_id, batch, [], [])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    read = {key: {metric.step: metric.value for metric in store.get_metric_history(run_id, key)} for key in rows[0]}
    wrong = sum(read[key].get(step) != value for step, values in enumerate(rows) for key, value in values.items())
    return {"seconds": seconds, "cpu": cpu, "wrong": wrong}


def loop(uri: str, keys: int, steps: int) -> dict[str, Any]:
    """What the training loop waits for in `mlflow.log_metrics`."""
    import mlflow
    from points import logged

    mlflow.set_tracking_uri(uri)
    rows, times = logged(keys, steps), []
    with mlflow.start_run():
        for step, values in enumerate(rows):
            begin = time.perf_counter()
            mlflow.log_metrics(values, step=step)
            times.append(time.perf_counter() - begin)
    return {"us_a_value": statistics.median(times) / keys * 1e6, "longest_ms": max(times) * 1e3}


def chart(uri: str, points: int, room: int) -> dict[str, Any]:
    """Seconds of `get_metric_history_bulk_interval`, what the page of a run reads. Rows are put in by plain SQL."""
    import sqlite3

    from points import value

    store, run_id = _store(uri)
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(metrics)")]
        assert set(columns) == {"key", "value", "timestamp", "run_uuid", "step", "is_nan"}, columns
        connection.executemany(
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) VALUES ('k0', ?, ?, ?, ?, 0)",
            ((value(0, step), 1_000 + step, run_id, step) for step in range(points)),
        )
    connection.close()

    def seconds(start: int | None, end: int | None) -> float:
        begin = time.perf_counter()
        found = store.get_metric_history_bulk_interval([run_id], "k0", room, start, end)
        assert found
        return time.perf_counter() - begin

    seconds(0, 10)
    middle = points // 2
    return {"full": seconds(None, None), "zoomed": seconds(middle, middle + points // 100)}


def main() -> None:
    what, *arguments = sys.argv[1:]
    if what == "version":
        import mlflow

        print(json.dumps(mlflow.__version__))
        return
    uri, *numbers = arguments
    print(json.dumps({"write": write, "loop": loop, "chart": chart}[what](uri, *map(int, numbers))))


if __name__ == "__main__":
    main()
