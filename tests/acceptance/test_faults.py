"""Real workers, real training and servers of their own, all of which are killed, cut off and frozen: nothing is lost.

Every run is held against an undisturbed one of the same plan: weights, metrics, samples and evaluations. None of
these tests cares whether the stage of a killed worker dies, or is taken over by the worker's successor.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.plan.stage import Plan
from engine.store.processes import process_started
from engine.store.tables import RunId
from tests.faults import ledger, training
from tests.faults.fleet import Fleet, Running, no_small_disk, small_disk
from tests.faults.ledger import Record
from tests.faults.servers import Postgres, RabbitMQ, Redis, Server
from tests.faults.storm import Storm
from tests.faults.undisturbed import undisturbed
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 32
PLAN = training.plan(5, steps=STEPS)
HELD_AT = training.HELD_AT


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """What the plan comes to where nothing goes wrong."""
    (record,) = undisturbed(tmp_path_factory.mktemp("undisturbed"), [training.plan(5, steps=STEPS, pace_s=0)])
    assert record.points == 2 * 3 * STEPS + 1 + 2 * training.COUNTED
    assert len(record.weights) == 2
    return record


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """What the first stage of `held(gate)` waits for, once it has made the checkpoint of step HELD_AT."""
    return tmp_path / "gate"


def held(*gates: Path) -> Plan:
    return training.plan(5, steps=STEPS, gates=gates)


def private(stack: ExitStack, kind: type[Server]) -> Server:
    """A server of our own for the length of a test; skips where its program is not installed."""
    if reason := kind.absent():
        pytest.skip(reason)
    return stack.enter_context(kind())


def wrong(fleet: Fleet, runs: Sequence[RunId], expected: Record) -> list[str]:
    """Everything that is not as if nothing had happened, once every run has ended."""
    found: list[str] = []
    for run_id in runs:
        fleet.ended(run_id)
        found += ledger.losses(ledger.read(fleet.db, run_id), expected) + ledger.breaches(fleet.db, run_id)
    return found


def gone(one: Running) -> bool:
    """Whether the attempt's process has ended."""
    return process_started(one.pid) != one.pid_started


@pytest.mark.parametrize(
    ("database", "broker"),
    [(None, None), (Postgres, Redis), (Postgres, RabbitMQ)],
    ids=["sqlite-filesystem", "postgres-redis", "postgres-rabbitmq"],
)
def test_whatever_goes_wrong_nothing_is_lost(
    stack: ExitStack, tmp_path: Path, expected: Record, database: type[Postgres] | None, broker: type[Server] | None
) -> None:
    """Every kind of fault there is, one after another on one fleet, each while something trains."""
    postgres = database and private(stack, database)
    server = broker and private(stack, broker)
    disk = None if no_small_disk() else stack.enter_context(small_disk(tmp_path / "disk"))
    urls = {"database_url": postgres.url if postgres else "", "broker_url": server.url if server else ""}
    fleet = stack.enter_context(Fleet(tmp_path / "fleet", **urls, artifacts=disk, lease_s=4))
    storm = Storm(fleet, 2, postgres, server, disk)
    kinds = [kind for kind in storm.kinds if kind != "lose_messages"]
    if broker is RabbitMQ:  # its own faults; the others were had with Redis
        kinds = ["repeat_messages", "restart_broker", "kill_broker"]
    submitted: list[RunId] = []

    def busy() -> bool:
        """Whether somebody trains; where there is too little to do, there is more after this."""
        if len(fleet.unfinished()) < 2 and not storm.held_up:
            submitted.append(fleet.submit(PLAN))
        return bool(fleet.running())

    for place, kind in enumerate(kinds):
        storm.strike("lose_messages", seconds=0.5)
        storm.await_(busy, "somebody trains")
        storm.await_(lambda kind=kind, place=place: storm.strike(kind, pick=place, seconds=0.5), f"{kind} hits")
    storm.calm()
    storm.await_(lambda: not fleet.unfinished(), "every run ends")

    runs = list(fleet.runs())  # one whose submission was cut off before the answer came is among them, or is not
    assert set(submitted) <= set(runs)
    assert wrong(fleet, runs, expected) == []
    assert storm.strange == []
    assert set(kinds) <= set(storm.hits)


def test_the_late_writes_of_a_frozen_worker_are_refused(
    stack: ExitStack, tmp_path: Path, expected: Record, gate: Path
) -> None:
    fleet = stack.enter_context(Fleet(tmp_path / "fleet", lease_s=3))
    later = gate.with_suffix(".later")
    run = fleet.submit(held(gate, later))
    first = fleet.start_worker()
    before = fleet.trained(run, attempt=1, step=HELD_AT)
    second = fleet.start_worker()
    frozen = fleet.family(first)
    assert before.pid in frozen
    with fleet.db.write():  # stopped with SQLite's write lock in its hand, it would hold up the one that takes over
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
    after = fleet.trained(run, attempt=2, step=training.HELD_AGAIN_AT)
    assert after.worker_pid == second.pid
    gate.touch()
    later.touch()
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)

    assert wrong(fleet, [run], expected) == []
    assert [attempt.status for attempt in fleet.attempts(run)] == ["lost", "succeeded"]
    until(lambda: gone(before), "the process that nobody waits for ends")
    assert first.poll() is None, "the worker itself goes on"


def test_a_killed_worker_leaves_nobody_behind_who_writes(
    stack: ExitStack, tmp_path: Path, expected: Record, gate: Path
) -> None:
    fleet = stack.enter_context(Fleet(tmp_path / "fleet", lease_s=3))
    run = fleet.submit(held(gate))
    first = fleet.start_worker()
    before = fleet.trained(run, attempt=1, step=HELD_AT)
    fleet.start_worker()
    first.kill()
    gate.touch()

    assert wrong(fleet, [run], expected) == []
    until(lambda: gone(before), "its stage's process ends")


def test_a_full_disk_of_artifacts_costs_time_and_nothing_else(
    stack: ExitStack, tmp_path: Path, expected: Record
) -> None:
    if reason := no_small_disk():
        pytest.skip(reason)
    disk = stack.enter_context(small_disk(tmp_path / "disk"))
    fleet = stack.enter_context(Fleet(tmp_path / "fleet", artifacts=disk))
    storm = Storm(fleet, 1, disk=disk)
    storm.strike("fill_disk", seconds=3600)
    run = fleet.submit(PLAN)
    storm.await_(lambda: [one for one in fleet.attempts(run) if one.cause == "disk"], "an attempt meets the full disk")
    (disk / "filler").unlink()

    assert wrong(fleet, [run], expected) == []
    assert {attempt.cause for attempt in fleet.attempts(run)} == {"disk", None}


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_stage_goes_on_while_the_database_is_away(
    stack: ExitStack, tmp_path: Path, expected: Record, gate: Path, how: str
) -> None:
    database = private(stack, Postgres)
    fleet = stack.enter_context(Fleet(tmp_path / "fleet", database_url=database.url, lease_s=120))
    run = fleet.submit(held(gate))
    fleet.start_worker()
    before = fleet.trained(run, attempt=1, step=HELD_AT)
    checkpoints = fleet.settings.checkpoints
    getattr(database, how)()
    trained = len(list(checkpoints.rglob("step-*")))
    gate.touch()
    until(lambda: len(list(checkpoints.rglob("step-*"))) > trained + 1, "it writes checkpoints meanwhile")
    database.start()

    assert wrong(fleet, [run], expected) == []
    assert [(attempt.status, attempt.pid) for attempt in fleet.attempts(run)] == [("succeeded", before.pid)]


def test_stages_begin_and_end_while_the_broker_is_away(stack: ExitStack, tmp_path: Path, expected: Record) -> None:
    broker = private(stack, Redis)
    fleet = stack.enter_context(Fleet(tmp_path / "fleet", broker_url=broker.url))
    fleet.start_worker()
    broker.kill()
    runs = [fleet.submit(PLAN)]
    assert wrong(fleet, runs, expected) == []
    broker.start()
    runs.append(fleet.submit(PLAN))
    assert wrong(fleet, runs, expected) == []


def test_a_server_of_our_own_keeps_its_data_and_leaves_nothing(stack: ExitStack) -> None:
    database = private(stack, Postgres)
    import psycopg

    def ask(statement: str) -> list[tuple[object, ...]]:
        with psycopg.connect(host=str(database.folder), port=database.port, user="rlx", dbname="postgres") as session:
            cursor = session.execute(statement)
            return cursor.fetchall() if cursor.description else []

    assert database.port != 5432
    ask("CREATE TABLE kept AS SELECT 42 AS answer")
    database.stop()
    database.start()
    database.kill()
    with pytest.raises(psycopg.OperationalError):
        ask("SELECT 1")
    database.start()
    assert ask("SELECT answer FROM kept") == [(42,)]
    pid = database.pid
    assert pid is not None
    started = process_started(pid)
    began = time.monotonic()
    stack.close()
    assert process_started(pid) != started
    assert not database.folder.exists()
    assert time.monotonic() - began < 60
