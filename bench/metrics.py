"""How many metric points a second become durable, what logging costs a training loop, and whether any is lost.

    python bench/metrics.py [--keys 10] [--steps 20000] [--mlflow-python PATH] [--postgres URL]

The same points go through our writer (SQLite, PostgreSQL), through plain inserts of 1,000 a transaction, and into
MLflow's file and SQLite stores by 1,000 a `log_batch`; everything is read back and compared, a point that differs ends
the benchmark. Then a busy loop in pure Python, which never gives the interpreter away by itself, logs while the writer
works beside it; and four processes write at once. Rates are medians of the rounds; CPU is this process's alone.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import multiprocessing
import resource
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from parts import mlflow_client
from parts.points import logged, value
from parts.stores import POSTGRES, claimed_stages, fresh_store
from sqlalchemy import select

from engine.errors import Unreachable
from engine.store.metrics import MetricWriter
from engine.store.pace import switch_often
from engine.store.session import Database, open_database
from engine.store.stages import Claimed
from engine.store.tables import Metric, Series

BATCH = 1000
WRITERS = 4
PLAIN = (
    "CREATE TABLE metrics (series_id BIGINT, step BIGINT, value DOUBLE PRECISION, time DOUBLE PRECISION,"
    " PRIMARY KEY (series_id, step))"
)


@dataclass(frozen=True)
class Written:
    """One way of storing the points."""

    seconds: float
    cpu: float


def timed(work: Callable[[], None]) -> Written:
    gc.collect()
    cpu, begin = time.process_time(), time.perf_counter()
    work()
    return Written(time.perf_counter() - begin, time.process_time() - cpu)


def writer_of(database: Database, claimed: Claimed, folder: Path) -> MetricWriter:
    return MetricWriter(database, claimed.run_id, claimed.stage_id, claimed.number, folder / "spool")


def check(database: Database, claimed: Claimed, keys: int, steps: int) -> None:
    """Every point is there as it was logged, and no other. Raises SystemExit."""
    with database.read() as session:
        for key in range(keys):
            rows = session.execute(
                select(Metric.step, Metric.value)
                .join(Series, Series.id == Metric.series_id)
                .where(Series.stage_id == claimed.stage_id, Series.key == f"k{key}")
            )
            if dict(tuple(row) for row in rows) != {step: value(key, step) for step in range(steps)}:
                raise SystemExit(f"k{key} was not read back as it was logged")


def ours(kind: str, server: str, folder: Path, rows: list[dict[str, float]]) -> Written:
    """Through the writer: from the first `log` until `close` has everything in the database."""
    with fresh_store(kind, folder, server) as database:
        (claimed,) = claimed_stages(database, 1)

        def work() -> None:
            writer = writer_of(database, claimed, folder)
            for step, values in enumerate(rows):
                writer.log(step, values)
            if not writer.close():
                raise SystemExit("the writer could not deliver")

        found = timed(work)
        check(database, claimed, len(rows[0]), len(rows))
        return found


def batches(rows: list[dict[str, float]]) -> Iterator[list[tuple[int, int, float, float]]]:
    flat = ((key, step, found, 0.0) for step, values in enumerate(rows) for key, found in enumerate(values.values()))
    while batch := list(itertools.islice(flat, BATCH)):
        yield batch


def plain_sqlite(folder: Path, rows: list[dict[str, float]]) -> Written:
    """`executemany`, one transaction a batch, the same table and journal as ours."""
    connection = sqlite3.connect(folder / "plain.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("DROP TABLE IF EXISTS metrics")
    connection.execute(PLAIN + " WITHOUT ROWID")

    def work() -> None:
        for batch in batches(rows):
            with connection:
                connection.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", batch)

    found = timed(work)
    compare(connection.execute("SELECT series_id, step, value FROM metrics"), rows)
    connection.close()
    return found


def plain_postgresql(folder: Path, server: str, rows: list[dict[str, float]]) -> Written:
    """psycopg's `executemany` (it sends a batch in one go), one transaction a batch, the same table."""
    import psycopg

    with fresh_store("PostgreSQL", folder, server) as database:
        url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE SCHEMA plain; SET search_path TO plain; " + PLAIN)
            connection.commit()

            def work() -> None:
                for batch in batches(rows):
                    with connection.transaction(), connection.cursor() as cursor:
                        cursor.executemany("INSERT INTO metrics VALUES (%s, %s, %s, %s)", batch)

            found = timed(work)
            compare(connection.execute("SELECT series_id, step, value FROM metrics"), rows)
        return found


def compare(found: Iterator[tuple[int, int, float]], rows: list[dict[str, float]]) -> None:
    read = {(key, step): number for key, step, number in found}
    if read != {(key, step): value(key, step) for step in range(len(rows)) for key in range(len(rows[0]))}:
        raise SystemExit("plain inserts were not read back as they were written")


def mlflow_store(interpreter: str, uri: str, keys: int, steps: int) -> Written:
    told = mlflow_client.ask(interpreter, "write", uri, keys, steps)
    if told["wrong"]:
        raise SystemExit(f"{told['wrong']} points were not read back from MLflow as they were logged")
    return Written(told["seconds"], told["cpu"])


def durable(given: argparse.Namespace, kinds: list[str], mlflow: bool) -> None:
    """The first table."""
    rows = logged(given.keys, given.steps)
    points = given.keys * given.steps
    found: dict[str, list[Written]] = {}
    for turn in range(given.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for kind in kinds:
                found.setdefault(f"rlx, {kind}", []).append(ours(kind, given.postgres, folder, rows))
            found.setdefault("plain SQLite inserts", []).append(plain_sqlite(folder, rows))
            if "PostgreSQL" in kinds:
                plain = plain_postgresql(folder, given.postgres, rows)
                found.setdefault("plain PostgreSQL inserts", []).append(plain)
            if mlflow and turn == 0:
                python, keys, steps = given.mlflow_python, given.keys, given.steps
                found["MLflow, file store"] = [mlflow_store(python, str(folder / "runs"), keys, steps)]
                uri = f"sqlite:///{folder / 'mlflow.db'}"
                found["MLflow, SQLite store"] = [mlflow_store(python, uri, keys, steps)]
    print(f"{points:,} points ({given.keys} keys, {given.steps:,} steps), one writer, all read back\n")
    print("| way | points a second | CPU s | × plain SQLite |\n| --- | --- | --- | --- |")
    base = statistics.median(way.seconds for way in found["plain SQLite inserts"])
    for name, ways in found.items():
        seconds = statistics.median(way.seconds for way in ways)
        cpu = statistics.median(way.cpu for way in ways)
        print(f"| {name} | {points / seconds:,.0f} | {cpu:.2f} | {base / seconds:.2f} |")
    print()


def spin(turns: int) -> float:
    """Work that keeps the interpreter to itself."""
    x = 1.0
    for _ in range(turns):
        x = x * 1.0000001 + 1e-9
    return x


def turns_for(seconds: float) -> int:
    """How many turns take that long here, when nothing disturbs."""
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        spin(10_000)
        times.append(time.perf_counter() - begin)
    return int(10_000 * seconds / min(times))


@dataclass(frozen=True)
class Step:
    """One step of the busy loop, in seconds."""

    log: float
    whole: float
    waited: bool
    """It gave the processor away by itself: all that it can wait for is the interpreter's lock."""
    beside: float
    """CPU time of the writer's thread meanwhile."""


def loop(
    log: Callable[[int, Mapping[str, float]], None], rows: list[dict[str, float]], turns: int, beside: int | None
) -> list[Step]:
    """Work and log; `beside` is the thread that the steps may have to wait for.

    Nothing is kept as an object of its own meanwhile: thousands of them would be the garbage collector's to go through.
    """
    log_s, whole_s, beside_s, waited = (array("d", bytes(8 * len(rows))) for _ in range(4))
    clock = time.perf_counter
    cpu = time.pthread_getcpuclockid(beside) if beside is not None else None
    for step, values in enumerate(rows):
        switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        other = 0.0 if cpu is None else time.clock_gettime(cpu)
        begin = clock()
        spin(turns)
        called = clock()
        log(step, values)
        end = clock()
        waited[step] = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw > switches
        beside_s[step] = 0.0 if cpu is None else time.clock_gettime(cpu) - other
        log_s[step], whole_s[step] = end - called, end - begin
    return [Step(*step) for step in zip(log_s, whole_s, map(bool, waited), beside_s, strict=True)]


def in_the_loop(given: argparse.Namespace, kinds: list[str], mlflow: bool) -> None:
    """The second table. On a shared machine steps are late for other processes too, so the stall that the writer
    causes is bounded by what it worked: how late a step was that waited, but no more than the writer's CPU time in it.
    """
    switch_often()  # as a stage's process does, whose parent has frozen what it had imported
    turns = turns_for(given.step_ms / 1e3)
    rows = logged(given.keys, given.loop_steps)
    gc.collect()
    gc.freeze()
    rate = given.keys / given.step_ms * 1e3
    print(f"A busy loop: {given.loop_steps:,} steps of {given.step_ms} ms, {given.keys} values each, {rate:,.0f} a s\n")
    print(
        "| way | µs a value | step, ms: median | 99.9 % | longest | over 1 ms late | longest stall by the writer, ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")

    def show(name: str, steps: list[Step]) -> None:
        wholes = sorted(step.whole for step in steps)
        middle = statistics.median(wholes)
        stall = max((min(step.whole - middle, step.beside) for step in steps if step.waited), default=0.0)
        late = sum(whole > middle + 1e-3 for whole in wholes)
        cost = statistics.median(step.log for step in steps) / given.keys * 1e6
        cells = (middle, wholes[int(len(steps) * 0.999)], wholes[-1])
        told = " | ".join(f"{1e3 * cell:.2f}" for cell in cells)
        print(f"| {name} | {cost:.2f} | {told} | {late} | {max(stall, 0) * 1e3:.2f} |")

    show("nothing logged", loop(lambda step, values: None, rows, turns, None))
    for kind in kinds:
        with tempfile.TemporaryDirectory() as name, fresh_store(kind, Path(name), given.postgres) as database:
            (claimed,) = claimed_stages(database, 1)
            writer = writer_of(database, claimed, Path(name))
            (thread,) = (one for one in threading.enumerate() if one.name == "metrics")
            steps = loop(writer.log, rows, turns, thread.ident)
            writer.close()
            check(database, claimed, given.keys, given.loop_steps)
            show(f"rlx, {kind}", steps)
    show("nothing logged, again", loop(lambda step, values: None, rows, turns, None))
    if mlflow:
        with tempfile.TemporaryDirectory() as name:
            for kind, uri in (("file", f"{name}/runs"), ("SQLite", f"sqlite:///{name}/mlflow.db")):
                told = mlflow_client.ask(given.mlflow_python, "loop", uri, given.keys, given.mlflow_steps)
                print(f"| MLflow, {kind} store | {told['us_a_value']:.0f} | | | | | {told['longest_ms']:.1f} |")
    print()


def one_of_four(url: str, claimed: Claimed, folder: Path, keys: int, steps: int) -> None:
    database = open_database(url)
    writer = writer_of(database, claimed, folder)
    for step, values in enumerate(logged(keys, steps)):
        writer.log(step, values)
    if not writer.close(patience_s=60):
        raise SystemExit("the writer could not deliver")
    database.close()


def at_once(given: argparse.Namespace, kinds: list[str]) -> None:
    """The third table."""
    points = WRITERS * given.keys * given.steps
    print(f"{WRITERS} processes at once, {points:,} points, all read back\n")
    print("| way | points a second, their start included | lost |\n| --- | --- | --- |")
    context = multiprocessing.get_context("spawn")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as name, fresh_store(kind, Path(name), given.postgres) as database:
            claims = claimed_stages(database, WRITERS)
            processes = [
                context.Process(target=one_of_four, args=(database.url, claimed, Path(name), given.keys, given.steps))
                for claimed in claims
            ]
            begin = time.perf_counter()
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            seconds = time.perf_counter() - begin
            if any(process.exitcode for process in processes):
                raise SystemExit("a writer failed")
            for claimed in claims:
                check(database, claimed, given.keys, given.steps)
            print(f"| rlx, {kind} | {points / seconds:,.0f} | 0 |")
    print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--loop-steps", type=int, default=10_000)
    parser.add_argument("--step-ms", type=float, default=1.0)
    parser.add_argument("--mlflow-steps", type=int, default=300, help="steps of MLflow's loop, which takes its time")
    parser.add_argument("--mlflow-python", default=sys.executable)
    parser.add_argument("--postgres", default=POSTGRES)
    parser.add_argument("--only", choices=["durable", "loop", "four"])
    given = parser.parse_args()
    kinds = ["SQLite", "PostgreSQL"]
    try:
        with fresh_store("PostgreSQL", Path(), given.postgres):
            pass
    except Unreachable as error:
        print(f"{error}: its rows are left out (--postgres names another)\n")
        kinds = ["SQLite"]
    mlflow = given.only != "four" and mlflow_client.version(given.mlflow_python) is not None
    if given.only in (None, "durable"):
        durable(given, kinds, mlflow)
    if given.only in (None, "loop"):
        in_the_loop(given, kinds, mlflow)
    if given.only in (None, "four"):
        at_once(given, kinds)


if __name__ == "__main__":
    main()
