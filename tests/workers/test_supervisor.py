"""One attempt under its supervisor, in a real process: however it ends, the store knows, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.clock import utc_now
from engine.store import artifacts, checkpoints, metrics, runs, samples, stages
from engine.store.processes import process_started
from engine.store.session import Database
from engine.store.tables import Attempt, Run, RunId, Stage, StageId
from tests.workers.conftest import STAGES
from workers.children import Children
from workers.supervisor import Deps, Times, supervise

Submit = Callable[..., tuple[Run, StageId]]


def stage_of(db: Database, run: Run) -> Stage:
    with db.read() as session:
        return stages.for_run(session, RunId(run.id))[0]


def last_attempt(db: Database, stage_id: StageId) -> Attempt:
    with db.read() as session:
        return stages.attempts(session, stage_id)[-1]


def status(db: Database, run: Run) -> str:
    with db.read() as session:
        return runs.get(session, RunId(run.id)).status


class Supervision:
    """`supervise` in a thread, so that the test can act meanwhile."""

    def __init__(self, stage_id: StageId, deps: Deps) -> None:
        self.claimed: bool | None = None
        self.thread = threading.Thread(target=self._run, args=(stage_id, deps))
        self.thread.start()

    def _run(self, stage_id: StageId, deps: Deps) -> None:
        self.claimed = supervise(stage_id, ("slot:0",), deps)

    def join(self) -> None:
        self.thread.join(120)
        assert not self.thread.is_alive()


def reached(gate: Path, until: Callable[..., str]) -> list[int]:
    marker = gate.with_suffix(".reached")
    return [int(word) for word in until(lambda: marker.exists() and marker.read_text()).split()]


def expected_total(seed: int, steps: int) -> float:
    rng, total = np.random.default_rng(seed), 0.0
    for _ in range(steps):
        total += float(rng.random())
    return total


def total(db: Database, run: Run) -> float:
    with db.read() as session:
        (artifact,) = artifacts.of_run(session, RunId(run.id)).values()
    return float(Path(artifact.uri, "total.txt").read_text())


def test_a_stage_that_succeeds_leaves_an_artifact_a_log_and_nothing_else(
    db: Database, deps: Deps, submit: Submit
) -> None:
    run, stage_id = submit("noop")

    assert supervise(stage_id, ("slot:0",), deps)

    assert status(db, run) == "succeeded"
    with db.read() as session:
        artifact = artifacts.of_run(session, RunId(run.id))["noop"]
    assert Path(artifact.uri, "answer.txt").read_text() == "42"
    attempt = last_attempt(db, stage_id)
    assert attempt.status == "succeeded"
    assert attempt.pid is not None
    assert attempt.log_path is not None
    assert Path(attempt.log_path).read_text() == attempt.log_tail
    assert "hello from the stage" in attempt.log_tail
    assert list(deps.settings.work.iterdir()) == []


def test_an_announcement_that_comes_twice_starts_nothing(db: Database, deps: Deps, submit: Submit) -> None:
    _, stage_id = submit("noop")
    assert supervise(stage_id, ("slot:0",), deps)
    assert not supervise(stage_id, ("slot:0",), deps)
    assert last_attempt(db, stage_id).number == 1


def test_a_stage_that_raises_says_why_and_keeps_its_metrics(db: Database, deps: Deps, submit: Submit) -> None:
    run, stage_id = submit("fail")

    supervise(stage_id, ("slot:0",), deps)

    assert status(db, run) == "failed"
    stage, attempt = stage_of(db, run), last_attempt(db, stage_id)
    assert (stage.cause, stage.error) == ("data_error", "items.jsonl:3: the answer is missing")
    assert attempt.detail["type"] == "DataError"
    assert 'raise DataError("items.jsonl:3' in attempt.detail["traceback"]
    assert "dataset" in attempt.detail["next"]
    assert "about to fail" in attempt.log_tail
    assert "DataError" in attempt.log_tail
    with db.read() as session:
        assert metrics.last(session, [RunId(run.id)], "loss")[RunId(run.id)].value == 0.5


def test_a_stage_that_does_not_import_says_so(db: Database, deps: Deps, submit: Submit) -> None:
    run, stage_id = submit("no_such_function")
    supervise(stage_id, ("slot:0",), deps)
    stage = stage_of(db, run)
    assert (stage.status, stage.cause) == ("failed", "import")
    assert "no_such_function" in (stage.error or "")


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_crash_in_native_code_leaves_its_stack_in_the_log(db: Database, deps: Deps, submit: Submit) -> None:
    _, stage_id = submit("crash")
    supervise(stage_id, ("slot:0",), deps)
    attempt = last_attempt(db, stage_id)
    assert (attempt.status, attempt.cause) == ("failed", "internal")
    assert "SIGSEGV" in (attempt.error or "")
    assert "queue_stages.py" in attempt.log_tail


def test_a_killed_stage_goes_on_from_its_checkpoint_and_ends_where_it_would_have(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Callable[..., str]
) -> None:
    run, stage_id = submit("count", steps=9, pause_at=5, gate=str(gate))
    first = Supervision(stage_id, deps)
    (pid,) = reached(gate, until)
    with db.read() as session:
        until(lambda: _steps(db, stage_id)[-1:] == [5])
    os.kill(pid, signal.SIGKILL)
    first.join()
    gate.touch()

    stage = stage_of(db, run)
    assert (stage.status, stage.cause) == ("ready", "lost")
    supervise(stage_id, ("slot:0",), deps)

    assert status(db, run) == "succeeded"
    assert "counting from 6" in last_attempt(db, stage_id).log_tail
    assert total(db, run) == expected_total(seed=3, steps=9)
    with db.read() as session:
        texts = sorted(sample.text for sample in samples.of_run(session, RunId(run.id), limit=100))
        curve = metrics.curve(session, RunId(run.id), "total")
    assert texts == sorted(["after 0", *(f"{when} {step}" for when in ("before", "after") for step in range(1, 10))])
    assert [point.step for point in curve.points] == list(range(1, 10))


def _steps(db: Database, stage_id: StageId) -> list[int]:
    with db.read() as session:
        return [row.step for row in checkpoints.of_stage(session, stage_id)]


def test_cancelling_stops_at_a_checkpoint(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Callable[..., str]
) -> None:
    run, stage_id = submit("count", steps=9, pause_at=5, gate=str(gate))
    supervision = Supervision(stage_id, deps)
    (pid,) = reached(gate, until)

    with db.write() as session:
        runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())
    supervision.join()

    assert (status(db, run), stage_of(db, run).status) == ("cancelled", "cancelled")
    assert _steps(db, stage_id)[-1] == 5
    assert process_started(pid) is None


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_stage_that_does_not_listen_is_killed_with_all_its_children(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Callable[..., str]
) -> None:
    run, stage_id = submit("deaf", gate=str(gate))
    supervision = Supervision(stage_id, replace(deps, times=Times(poll_s=0.05, grace_s=0.2)))
    pids = reached(gate, until)

    with db.write() as session:
        runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())
    supervision.join()

    assert status(db, run) == "cancelled"
    assert [process_started(pid) for pid in pids] == [None, None]


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_children_of_a_killed_stage_are_ended_too(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Callable[..., object]
) -> None:
    run, stage_id = submit("deaf", gate=str(gate))
    supervision = Supervision(stage_id, deps)
    pid, child = reached(gate, until)
    os.kill(pid, signal.SIGKILL)
    supervision.join()

    assert stage_of(db, run).cause == "lost"
    until(lambda: process_started(child) is None)


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_stage_whose_time_is_up_leaves_its_stacks_in_the_log(
    db: Database, deps: Deps, submit: Submit, gate: Path, clock_from_the_gate: Callable[[], float]
) -> None:
    run, stage_id = submit("deaf", timeout_s=1.5, gate=str(gate))
    times = Times(poll_s=0.05, grace_s=0.2)
    supervise(stage_id, ("slot:0",), replace(deps, times=times, clock=clock_from_the_gate))
    attempt = last_attempt(db, stage_id)
    assert (attempt.status, attempt.cause) == ("failed", "hang")
    assert "0:00:01.5" in (attempt.error or "")
    assert "in deaf" in attempt.log_tail
    assert stage_of(db, run).status == "ready"


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_draining_hands_the_stage_back_at_a_checkpoint(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Callable[..., str]
) -> None:
    run, stage_id = submit("count", steps=9, pause_at=5, gate=str(gate))
    supervision = Supervision(stage_id, deps)
    reached(gate, until)
    deps.draining.set()
    supervision.join()

    stage = stage_of(db, run)
    assert (stage.status, stage.failures) == ("ready", 0)
    assert _steps(db, stage_id)[-1] == 5
    deps.draining.clear()
    gate.touch()
    supervise(stage_id, ("slot:0",), deps)
    assert total(db, run) == expected_total(seed=3, steps=9)


def test_an_attempt_that_was_given_up_ends_without_a_word(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Callable[..., str]
) -> None:
    run, stage_id = submit("deaf", gate=str(gate))
    supervision = Supervision(stage_id, deps)
    pids = reached(gate, until)
    with db.write() as session:
        attempt = stages.attempts(session, stage_id)[-1]
        stages.lose(session, run.id, attempt.id, now=utc_now())
    supervision.join()

    assert [process_started(pid) for pid in pids] == [None, None]
    assert stage_of(db, run).status == "ready"
    assert last_attempt(db, stage_id).status == "lost"


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_nursery_that_dies_is_replaced(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Callable[..., object]
) -> None:
    run, stage_id = submit("deaf", gate=str(gate))
    supervision = Supervision(stage_id, deps)
    pids = reached(gate, until)
    nursery = deps.children.nursery_pid
    assert nursery is not None
    os.kill(nursery, signal.SIGKILL)
    supervision.join()

    assert stage_of(db, run).cause == "lost"
    until(lambda: process_started(pids[0]) is None)
    os.kill(pids[1], signal.SIGKILL)  # in a session of its own, and nobody is left who knew of it
    other, stage_id = submit("noop")
    supervise(stage_id, ("slot:0",), deps)
    assert status(db, other) == "succeeded"
    assert deps.children.nursery_pid != nursery


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_stage_process_is_warm_and_sees_no_device_that_was_not_lent(db: Database, deps: Deps, submit: Submit) -> None:
    for devices, visible in ((("slot:0",), ""), (("slot:0", "gpu:2", "gpu:5"), "2,5")):
        run, stage_id = submit("modules")
        supervise(stage_id, devices, deps)
        with db.read() as session:
            (artifact,) = artifacts.of_run(session, RunId(run.id)).values()
        assert Path(artifact.uri, "gpus.txt").read_text() == visible
        assert Path(artifact.uri, "torch.txt").read_text() == "True"


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_light_stage_starts_without_torch_and_draws_the_same_with_it(
    db: Database, deps: Deps, submit: Submit
) -> None:
    found = []
    for light in (False, True):
        run, stage_id = submit("draw", light=light)
        supervise(stage_id, ("slot:0",), deps)
        with db.read() as session:
            (artifact,) = artifacts.of_run(session, RunId(run.id)).values()
        found.append(json.loads(Path(artifact.uri, "drawn.json").read_text()))
    (early, *full), (late, *light_one) = found
    assert early
    assert not late
    assert full == light_one


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_the_stages_of_a_full_worker_share_its_processors(
    db: Database, deps: Deps, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # which would be what the user wants
    monkeypatch.setenv("RLX_PRELOAD", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(STAGES), os.environ.get("PYTHONPATH")])))
    processors = len(os.sched_getaffinity(0))
    threads = []
    with closing(Children(tmp_path)) as children:
        for slots in (1, processors):
            run, stage_id = submit("draw")
            supervise(stage_id, ("slot:0",), replace(deps, children=children, slots=slots))
            with db.read() as session:
                (artifact,) = artifacts.of_run(session, RunId(run.id)).values()
            threads.append(json.loads(Path(artifact.uri, "drawn.json").read_text())[-1])
    assert threads == [processors, 1]


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_the_nursery_has_one_thread(deps: Deps, submit: Submit) -> None:
    supervise(submit("noop")[1], ("slot:0",), deps)
    assert len(os.listdir(f"/proc/{deps.children.nursery_pid}/task")) == 1
