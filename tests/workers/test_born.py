"""Light stages that follow each other in one process: what they share, and what ends that."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.clock import utc_now
from engine.plan.stage import Plan, Resources, Stage
from engine.store import artifacts, runs, stages
from engine.store.processes import process_started
from engine.store.session import Database
from engine.store.tables import Run, RunId, StageId
from tests.workers.conftest import STAGES
from workers.children import Children
from workers.supervisor import Deps, supervise

Until = Callable[..., object]
pytestmark = pytest.mark.parametrize("db", ["sqlite"], indirect=True)


@pytest.fixture
def patient(tmp_path: Path, deps: Deps, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deps]:
    """A worker whose processes rest for as long as the test takes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(STAGES), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("RLX_PRELOAD", "")
    children = Children(tmp_path / "run", rest_s=3600)
    yield replace(deps, children=children)
    children.close()


def submit(db: Database, *extras: dict[str, Any], function: str = "litter", light: bool = True) -> Run:
    """A run of a stage for each of `extras`."""
    plan = tuple(
        Stage(
            f"s{n}",
            "test.stage",
            f"queue_stages:{function}",
            (),
            resources=Resources(light=light),
            extra=extra | {"n": n},
        )
        for n, extra in enumerate(extras)
    )
    with db.write() as session:
        return runs.submit(
            session, Plan("test", 3, plan), runs.Submission(source="", resolved={}, no_cache=True), now=utc_now()
        )


def carry_out(db: Database, run: Run, deps: Deps) -> None:
    """The run's stages, one after another."""
    with db.read() as session:
        ids = [StageId(stage.id) for stage in stages.for_run(session, RunId(run.id))]
    for stage_id in ids:
        assert supervise(stage_id, ("slot:0",), deps)


def outputs(db: Database, run: Run) -> list[str]:
    with db.read() as session:
        found = artifacts.of_run(session, RunId(run.id))
    return [Path(artifact.uri, "pid.txt").read_text() for _, artifact in sorted(found.items())]


def pids(db: Database, run: Run) -> list[int]:
    return [int(text.split()[0]) for text in outputs(db, run)]


def test_stages_of_a_run_share_a_process_and_nothing_else(db: Database, patient: Deps) -> None:
    run = submit(db, {"number": 1}, {"number": 2}, {"number": 3})
    other = submit(db, {"number": 4})

    carry_out(db, run, patient)
    carry_out(db, other, patient)

    assert len(set(pids(db, run))) == 1
    assert pids(db, run)[0] not in pids(db, other)
    assert [text.split()[2] for text in outputs(db, run)] == ["1", "2", "3"]
    for n in range(3):
        log = (patient.settings.logs / run.handle / f"s{n}-1.log").read_text()
        assert [line for line in log.splitlines() if "number" in line] == [f"the number is {n + 1}"]
    with db.read() as session:
        for stage in stages.for_run(session, RunId(run.id)):
            (attempt,) = stages.attempts(session, StageId(stage.id))
            assert (attempt.status, attempt.pid) == ("succeeded", pids(db, run)[0])


def test_a_process_serves_no_more_than_so_many_stages(db: Database, patient: Deps) -> None:
    run = submit(db, *({"number": number} for number in range(102)))
    carry_out(db, run, patient)
    with db.read() as session:
        found = [stages.attempts(session, StageId(stage.id)) for stage in stages.for_run(session, RunId(run.id))]
    assert [[attempt.status for attempt in attempts] for attempts in found] == [["succeeded"]] * 102
    assert [attempt.pid for (attempt,) in found[:100]] == [found[0][0].pid] * 100
    assert found[100][0].pid == found[101][0].pid != found[0][0].pid


def test_other_stages_have_processes_of_their_own(db: Database, patient: Deps) -> None:
    run = submit(db, {"number": 1}, {"number": 2}, light=False)
    carry_out(db, run, patient)
    first, second = pids(db, run)
    assert first != second


@pytest.mark.parametrize("left", ["thread", "child", "orphan", "file", "environment", "folder", "path", "timer"])
def test_where_a_stage_leaves_something_its_process_ends(db: Database, patient: Deps, left: str, until: Until) -> None:
    run = submit(db, {"number": 1, "leaves": left}, {"number": 2})

    carry_out(db, run, patient)

    first, second = pids(db, run)
    child = int(outputs(db, run)[0].split()[1])
    assert first != second
    until(lambda: process_started(first) is None)
    until(lambda: not child or process_started(child) is None)


def test_where_a_stage_fails_its_process_ends(db: Database, patient: Deps, until: Until) -> None:
    run = submit(db, {"number": 1, "leaves": "failure"}, {"number": 2, "leaves": "failure"})
    carry_out(db, run, patient)
    with db.read() as session:
        found = [stages.attempts(session, StageId(stage.id)) for stage in stages.for_run(session, RunId(run.id))]
    (first, second) = (attempts[0].pid for attempts in found if attempts)
    assert first is not None
    assert first != second
    until(lambda: process_started(first) is None)


def test_a_stage_draws_the_same_in_a_used_process(db: Database, patient: Deps) -> None:
    used = submit(db, {"number": 1}, {})
    with db.write() as session:
        for stage in stages.for_run(session, RunId(used.id))[1:]:
            stage.entry, stage.name = "queue_stages:draw", "drawn"
    fresh = submit(db, {}, function="draw")
    with db.write() as session:
        stages.for_run(session, RunId(fresh.id))[0].name = "drawn"

    carry_out(db, used, patient)
    carry_out(db, fresh, patient)

    with db.read() as session:
        drawn, again = (Path(artifacts.of_run(session, RunId(run.id))["drawn"].uri) for run in (used, fresh))
    assert (drawn / "drawn.json").read_text() == (again / "drawn.json").read_text()


def test_where_the_process_has_died_meanwhile_the_next_stage_gets_another(
    db: Database, patient: Deps, until: Until
) -> None:
    run = submit(db, {"number": 1}, {"number": 2})
    with db.read() as session:
        first, second = (StageId(stage.id) for stage in stages.for_run(session, RunId(run.id)))
    assert supervise(first, ("slot:0",), patient)
    (pid,) = pids(db, run)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists())  # its nursery knows

    assert supervise(second, ("slot:0",), patient)

    with db.read() as session:
        attempts = stages.attempts(session, second)
    assert [attempt.status for attempt in attempts] == ["succeeded"]
    assert pids(db, run)[1] != pid


def test_nobody_rests_without_a_worker(db: Database, patient: Deps, until: Until) -> None:
    run = submit(db, {"number": 1})
    carry_out(db, run, patient)
    (pid,) = pids(db, run)
    assert process_started(pid) is not None
    for nursery in patient.children._own.values():
        nursery.channel.shutdown(socket.SHUT_RDWR)
    until(lambda: process_started(pid) is None)


def test_nobody_rests_for_long(db: Database, deps: Deps, tmp_path: Path, until: Until, patient: Deps) -> None:
    children = Children(tmp_path / "hasty", rest_s=0)
    try:
        run = submit(db, {"number": 1})
        carry_out(db, run, replace(deps, children=children))
        (pid,) = pids(db, run)
        until(lambda: process_started(pid) is None)
        assert all(nursery.process and nursery.process.poll() is None for nursery in children._own.values())
    finally:
        children.close()
