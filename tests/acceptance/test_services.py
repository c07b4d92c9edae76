"""Services under real workers: they serve their stage, their logs are kept, and whatever happens none is left."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.clock import utc_now
from engine.plan.stage import Resources, Stage
from engine.settings import Settings
from engine.spec.services import Hosted
from engine.store import runs
from engine.store.processes import process_started
from engine.store.tables import RunId
from tests.acceptance.lab import Lab
from tests.lm.scripted_endpoint import Reply, serving
from tests.waiting import until

HERE = Path(__file__).parent
SERVER = HERE.parent / "runtime" / "odd_server.py"


@pytest.fixture
def lab(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("RLX_PRELOAD", "")
    lab = Lab(settings, tmp_path / "gate")
    yield lab
    for worker in lab.workers:
        if worker.poll() is None:
            worker.kill()
        worker.wait()
    lab.db.close()
    until(lambda: not left(tmp_path / "odd"), "no orphan is left", 30)


@pytest.fixture
def beside(tmp_path: Path, lab: Lab) -> Callable[..., Stage]:
    """`beside("ask", "deaf")` is a stage with a service that is deaf."""

    def beside(function: str, *vices: str, name: str | None = None, **more: Any) -> Stage:
        folder = tmp_path / "odd"
        folder.mkdir(exist_ok=True)
        service = {
            "kind": "command",
            "argv": [sys.executable, str(SERVER), "{port}", str(folder), *vices],
            "health": "/health",
            "folder": None,
            "env": {},
            "gpus": 0,
            "start_timeout": 60.0,
            "keep": None,
            **more,
        }
        return Stage(
            name or function,
            f"test.{function}",
            f"service_stages:{function}",
            (),
            config={"services": {"odd": service}},
            extra={"gate": str(lab.gate)},
            resources=Resources(gpus=service["gpus"]),
        )

    return beside


def left(folder: Path) -> list[int]:
    """What still lives of all that was ever started."""
    pids = [int(pid) for name in ("starts", "children") for pid in _read(folder / name).split()]
    return [pid for pid in pids if process_started(pid) is not None]


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def held(lab: Lab) -> list[int]:
    """Wait until the stage has asked its service: the pids of both."""
    marker = lab.gate.with_suffix(".reached")
    return [int(pid) for pid in until(lambda: marker.exists() and marker.read_text()).split()]


def test_a_stage_has_its_service_and_the_service_a_log(lab: Lab, beside: Callable[..., Stage], tmp_path: Path) -> None:
    run = lab.submit(beside("ask"))
    lab.embedded(run)

    assert lab.ended(run) == "succeeded"
    (pid,) = _read(tmp_path / "odd" / "starts").split()
    assert json.loads(lab.output(run, "ask", "pids.json")) == {"odd": int(pid)}
    log = lab.settings.logs / run.handle / "ask-1.odd.log"
    assert log.read_text().startswith("the key is ")
    (attempt,) = lab.attempts(run, "ask")
    assert Path(attempt.log_path).parent == log.parent
    assert "services are up" in Path(attempt.log_path).read_text()
    assert log.read_text().split()[3] not in Path(attempt.log_path).read_text(), "the key is in no log of ours"


def test_an_endpoint_is_asked_in_a_started_services_place_and_its_key_is_stored_nowhere(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key := "not-for-the-store")
    with serving(lambda number, body: Reply(body=[body["model"]])) as served:
        judge = Hosted(kind="endpoint", url=served.url, model="judge", key="${env:JUDGE_KEY}")
        config = {"services": {"judge": judge.model_dump(mode="json")}}
        run = lab.submit(Stage("talk", "test.talk", "service_stages:talk", (), config=config))
        lab.embedded(run)

        assert lab.ended(run) == "succeeded"
    assert json.loads(lab.output(run, "talk", "said.json")) == {"judge": ["judge"]}
    assert served.paths == ["/v1/models", "/v1/chat/completions"]
    assert {*served.authorisations} == {f"Bearer {key}"}
    assert "/models answers" in (lab.settings.logs / run.handle / "talk-1.judge.log").read_text()
    written = [path for path in lab.settings.home.rglob("*") if path.is_file()]
    assert not [path for path in written if key.encode() in path.read_bytes()]


@pytest.mark.parametrize("whom", ["stage", "keeper", "run", "worker and nursery", "worker"])
def test_no_service_outlives_its_stage(lab: Lab, beside: Callable[..., Stage], tmp_path: Path, whom: str) -> None:
    run = lab.submit(beside("hold", "deaf", "children"))
    worker = lab.embedded(run)
    stage, service = held(lab)
    nursery = _parent(stage)

    match whom:
        case "stage" | "keeper":
            os.kill(stage if whom == "stage" else _parent(service), signal.SIGKILL)
            until(lambda: process_started(service) is None, "its service ends, too", 30)
            cause = until(lambda: lab.attempts(run, "hold")[0].cause)
            assert cause == ("lost" if whom == "stage" else "service_down")
            assert not left(tmp_path / "odd"), "of the first attempt, when its end is recorded"
            lab.gate.touch()
            if whom == "stage":  # after a service, one waits before one tries again
                assert lab.ended(run) == "succeeded"
                assert len(_read(tmp_path / "odd" / "starts").split()) == 2
            worker.kill()
        case "run":
            with lab.db.write() as session:
                runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())
            assert lab.ended(run) == "cancelled"
        case "worker and nursery":
            for pid in (worker.pid, nursery):
                os.kill(pid, signal.SIGKILL)
        case _:
            worker.kill()
    until(lambda: process_started(stage) is None and not left(tmp_path / "odd"), "all is over", 60)


@pytest.mark.parametrize(
    ("function", "vices", "cause", "said"),
    [
        ("ask", ("exits",), "service_down", "there is no such model"),
        ("fail", (), "internal", "on purpose"),
        ("kill_twice", (), "service_down", "after it had been started a second time"),
    ],
)
def test_how_a_stage_fails(
    lab: Lab, beside: Callable[..., Stage], function: str, vices: tuple[str, ...], cause: str, said: str
) -> None:
    run = lab.submit(beside(function, *vices))
    lab.embedded(run)

    first = until(lambda: (found := lab.attempts(run, function)) and found[0].finished_at and found[0])
    assert (first.cause, said in first.error) == (cause, True)
    with lab.db.write() as session:
        runs.request_stop(session, runs.get(session, RunId(run.id)), now=utc_now())
    lab.ended(run)


@pytest.mark.parametrize("whom", ["worker", "nursery"])
def test_a_kept_service_ends_with_its_worker(lab: Lab, beside: Callable[..., Stage], tmp_path: Path, whom: str) -> None:
    first, later = beside("ask", keep=600.0), beside("ask", name="later", keep=600.0)
    between = replace(beside("hold"), config={}, inputs={"before": "ask"})
    run = lab.submit(first, between, replace(later, inputs={"before": "hold"}))
    worker = lab.embedded(run)
    (stage,) = held(lab)
    (service,) = left(tmp_path / "odd")

    if whom == "worker":
        worker.kill()
        until(lambda: process_started(service) is None, "it ends with its worker", 30)
        return
    os.kill(_parent(stage), signal.SIGKILL)  # the stages die with it; what is kept is the worker's
    lab.gate.touch()

    assert lab.ended(run) == "succeeded"
    assert json.loads(lab.output(run, "later", "pids.json")) == {"odd": service}
