"""`rlx track` and `rlx export --to tensorboard`, and a worker that mirrors by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.clock import utc_now
from engine.store import locks
from tests import tracking_readers as readers
from tests.acceptance.rlx_command import Rlx as Command
from tests.tracking.conftest import Training
from tests.waiting import until

Rlx = Callable[..., Any]
pytestmark = pytest.mark.tracking


@pytest.fixture
def training(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    monkeypatch.chdir(tmp_path)
    made = Training(lab, tmp_path)
    made.log(range(1, 4))
    return made


def test_a_bridge_is_chosen_by_hand_and_caught_up_with(rlx: Rlx, training: Training, tmp_path: Path) -> None:
    first = rlx("track", "best-lang-1", "--to", "tensorboard", "folder=boards")
    again = rlx("track", "best-lang-1", "--to", "tensorboard", "folder=boards")
    training.log(range(4, 6))
    more = rlx("track", "best-lang-1", "--to", "tensorboard", "folder=boards")

    folder = tmp_path / "boards" / "best-lang-1"
    assert (first.code, first.out, first.err) == (0, f"{folder}\n", "tensorboard: 6 points\n")
    assert (again.out, again.err) == ("", "tensorboard: nothing new\n")
    assert more.err == "tensorboard: 4 points\n"
    assert [step for step, _ in readers.tensorboard_curves(folder)["train", "loss"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ((), 2, "names no bridge in `tracking`: choose one with --to"),
        (("--to", "wandb", "projekt=x"), 2, "Its settings are project, entity, mode"),
        (("--to", "wandb", "x"), 2, "write KEY=VALUE"),
        (("project=x",), 2, "say with --to"),
    ],
)
def test_what_cannot_be_mirrored_says_what_to_do(
    rlx: Rlx, training: Training, line: tuple[str, ...], code: int, said: str
) -> None:
    answer = rlx("track", "best-lang-1", *line)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err


def test_who_comes_while_another_mirrors_is_told_so(rlx: Rlx, training: Training) -> None:
    with training.lab.db.write() as session:
        locks.acquire(session, locks.tracking_lock(training.id), "other", now=utc_now(), ttl_s=60)
    answer = rlx("track", "best-lang-1", "--to", "tensorboard")
    assert answer.code == 5
    assert "is being mirrored just now" in answer.err


def test_an_export_is_a_folder_that_tensorboard_reads(rlx: Rlx, training: Training, tmp_path: Path) -> None:
    answer = rlx("export", "best-lang-1", "--to", "tensorboard")

    assert (answer.code, answer.out) == (0, "best-lang-1-tensorboard\n")
    found = readers.tensorboard_curves(tmp_path / "best-lang-1-tensorboard")
    assert found["train", "loss"] == training.curves()["train", "loss"]


SPEC = """
version: 1
name: tracked
dataset: {items: [{prompt: Say a word., answer: word}], system_prompt: ""}
algorithm: {name: sft, steps: 12, batch_size: 1}
model: scratch:llama-nano
hardware: {device: cpu, threads: 1}
evaluation: {every: 4}
tracking: {tensorboard: {folder: boards}, mlflow: {}}
"""


@pytest.mark.slow
def test_a_worker_mirrors_a_run_while_it_is_alive_and_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    command = Command(tmp_path / "home")

    handle = command("submit", str(tmp_path / "spec.yaml"), "--wait").strip()

    uri, board = f"sqlite:///{tmp_path}/home/tracking/mlflow/mlflow.db", tmp_path / "boards" / handle
    log = tmp_path / "home" / "tracking" / "logs" / f"{handle}.log"
    until(lambda: log.is_file() and "mlflow: up to date" in log.read_text(), "for the mirror to end")
    assert "tensorboard: up to date" in log.read_text()
    command("export", handle, "--to", "csv", "-o", str(tmp_path / "csv"))
    lines = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[1:]
    expected: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for stage, key, step, value, _ in (line.split(",") for line in lines):
        expected.setdefault((stage, key), []).append((int(step), float(value)))
    for found in (readers.tensorboard_curves(board), readers.mlflow_curves(uri, "tracked")):
        assert len(found["train", "train/loss"]) == 12
        for series, points in expected.items():
            assert [step for step, _ in found[series]] == [step for step, _ in points]
            assert [value for _, value in found[series]] == pytest.approx([value for _, value in points], rel=1e-6)
    assert readers.mlflow_run(uri, "tracked").info.status == "FINISHED"
    shown = command.json("show", handle)
    assert shown["failing_mirrors"] == {}
