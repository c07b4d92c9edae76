"""Services that are kept under a worker: for whom it keeps them, and when it ends them."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.clock import utc_now
from engine.plan.stage import Plan, Resources, Stage
from engine.runtime import kept
from engine.store import artifacts, runs, stages
from engine.store.processes import process_started
from engine.store.tables import Run, RunId, StageId
from tests.waiting import until
from workers.kept import end_unneeded
from workers.supervisor import Deps, supervise

SERVER = Path(__file__).parents[1] / "runtime" / "odd_server.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "odd").mkdir()
    return tmp_path / "odd"


@pytest.fixture
def desk(deps: Deps, folder: Path) -> Iterator[Desk]:
    desk = Desk(deps, folder)
    yield desk
    for found in kept.on_this_host(deps.settings.sockets):
        kept.end(found)
    assert [pid for pid in desk.started() if process_started(pid)] == []


class Desk:
    def __init__(self, deps: Deps, folder: Path) -> None:
        self.deps, self.folder = deps, folder

    def stage(self, name: str, *, function: str = "ask", after: str | None = None, gpus: int = 0, **more: Any) -> Stage:
        """One with a service that is kept; `light`, so that its process is born quickly."""
        service = {
            "kind": "command",
            "argv": [sys.executable, str(SERVER), "{port}", str(self.folder)],
            "health": "/health",
            "folder": None,
            "env": {},
            "gpus": gpus,
            "start_timeout": 60.0,
            "keep": 600.0,
            **more,
        }
        return Stage(
            name,
            f"test.{name}",
            f"service_stages:{function}",
            (),
            config={"services": {"odd": service}},
            inputs={} if after is None else {"before": after},
            extra={"gate": str(self.folder / "gate")},
            resources=Resources(gpus=gpus, light=True),
        )

    def submit(self, *plan: Stage) -> Run:
        submission = runs.Submission(source="", resolved={}, no_cache=True)
        with self.deps.db.write() as session:
            return runs.submit(session, Plan("test", 3, plan), submission, now=utc_now())

    def supervise(self, run: Run, name: str, *devices: str) -> None:
        with self.deps.db.read() as session:
            found = next(stage for stage in stages.for_run(session, RunId(run.id)) if stage.name == name)
        assert supervise(StageId(found.id), ("slot:0", *devices), self.deps)
        with self.deps.db.read() as session:
            (attempt,) = stages.attempts(session, StageId(found.id))
        assert attempt.status == "succeeded", attempt.error

    def said(self, run: Run, name: str, file: str) -> Any:
        with self.deps.db.read() as session:
            return json.loads(Path(artifacts.of_run(session, RunId(run.id))[name].uri, file).read_text())

    def started(self) -> list[int]:
        starts = self.folder / "starts"
        return [int(pid) for pid in starts.read_text().split()] if starts.exists() else []


def test_the_stages_of_a_run_share_it_and_it_ends_with_the_last(desk: Desk) -> None:
    run = desk.submit(desk.stage("a"), desk.stage("b", after="a"), desk.stage("c", after="b"))

    desk.supervise(run, "a")
    (pid,) = desk.started()
    assert process_started(pid) is not None
    desk.supervise(run, "b")
    assert process_started(pid) is not None, "c needs it"
    desk.supervise(run, "c")

    assert [desk.said(run, name, "pids.json") for name in ("a", "b", "c")] == [{"odd": pid}] * 3
    assert process_started(pid) is None, "no stage is left that needs it"
    log = desk.deps.settings.logs / run.handle / "b-1.odd.log"
    assert "a-1.odd.log" in log.read_text()


def test_a_run_that_is_cancelled_needs_it_no_more(desk: Desk) -> None:
    run = desk.submit(desk.stage("a"), desk.stage("b", after="a"))
    desk.supervise(run, "a")
    (pid,) = desk.started()
    end_unneeded(desk.deps.settings, desk.deps.db)
    assert process_started(pid) is not None

    with desk.deps.db.write() as session:
        runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())
    end_unneeded(desk.deps.settings, desk.deps.db)

    assert process_started(pid) is None


def test_its_gpus_pass_with_it_to_the_next_stage_of_the_run(desk: Desk) -> None:
    run = desk.submit(desk.stage("a", gpus=1), desk.stage("b", after="a", gpus=1))
    desk.supervise(run, "a", "gpu:3")
    desk.supervise(run, "b", "gpu:3")
    assert len(desk.started()) == 1
    assert desk.said(run, "b", "gpus.json") == {"stage": "", "device": "cpu", "odd": "3"}


def test_on_other_gpus_the_next_stage_gets_one_of_its_own(desk: Desk) -> None:
    run = desk.submit(desk.stage("a", gpus=1), desk.stage("b", after="a", gpus=1))
    desk.supervise(run, "a", "gpu:3")
    desk.supervise(run, "b", "gpu:4")
    assert len(desk.started()) == 2
    assert desk.said(run, "b", "gpus.json")["odd"] == "4"


@pytest.mark.parametrize("own", [True, False], ids=["another run", "the same run, for something else"])
def test_before_its_gpu_is_used_by_another_stage_it_has_ended(desk: Desk, own: bool) -> None:
    """The other stage's service starts while a GPU is held by nobody: it writes down who lives."""
    first = [desk.stage("a", gpus=1), desk.stage("z", after="a", gpus=1)]
    other = desk.stage("other", function="who_lives", gpus=1, env={"OTHER": "1"})
    run = desk.submit(*first, *([] if own else [other]))
    desk.supervise(run, "a", "gpu:3")
    (pid,) = desk.started()
    assert process_started(pid) is not None
    second = desk.submit(other) if own else run

    desk.supervise(second, "other", "gpu:3")

    assert desk.said(second, "other", "alive.json") == [desk.started()[1]]


def test_where_no_gpu_is_shared_it_stays(desk: Desk) -> None:
    run = desk.submit(desk.stage("a", gpus=1), desk.stage("z", after="a", gpus=1))
    desk.supervise(run, "a", "gpu:3")
    second = desk.submit(desk.stage("other", function="who_lives", gpus=1))
    desk.supervise(second, "other", "gpu:4")
    assert len(desk.said(second, "other", "alive.json")) == 2


def test_a_stage_that_is_killed_leaves_its_gpu_to_the_next(desk: Desk) -> None:
    """Its service ends by itself, and before the GPU is used again in any case."""
    run = desk.submit(desk.stage("hold", function="hold", gpus=1))
    with desk.deps.db.read() as session:
        (found,) = stages.for_run(session, RunId(run.id))
    thread = threading.Thread(target=supervise, args=(StageId(found.id), ("slot:0", "gpu:3"), desk.deps))
    thread.start()
    marker = desk.folder / "gate.reached"
    stage, service = map(int, until(lambda: marker.exists() and marker.read_text()).split())
    os.kill(stage, 9)
    thread.join(60)
    second = desk.submit(desk.stage("other", function="who_lives", gpus=1))

    desk.supervise(second, "other", "gpu:3")

    assert service not in desk.said(second, "other", "alive.json")
    with desk.deps.db.write() as session:
        runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())
