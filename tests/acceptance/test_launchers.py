"""One spec in one process, and in two under each launcher: the same losses; begun in two, it is finished in one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import Select, select
from transformers import AutoModelForCausalLM

from engine.store.session import open_database
from engine.store.tables import Artifact, Attempt, Metric, Run, Series, Stage
from tests.acceptance.rlx_command import ROOT, Rlx, eventually

STEPS, LONGER = 50, 250
"""Of a run, and of those that are to be caught at work."""
OVERRIDES = (
    "algorithm.schedule=constant",
    "algorithm.warmup=0.0",
    "algorithm.lr=5e-4",
    "algorithm.batch_size=6",
    "algorithm.batch_tokens=150",
    "algorithm.checkpoint_every=5",
    "evaluation={every: 250}",
    "algorithm.best_by=null",
    "dataset.score_fn=null",
    "dataset.done_fn=null",
    "dataset.split_fn=null",
    "retries.max_attempts=1",
)
DDP = ("hardware.launcher=torchrun", "hardware.processes=2")
ZERO = ("hardware.launcher=deepspeed", "hardware.processes=2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that leave two dozen examples of very different lengths."""
    folder = tmp_path_factory.mktemp("data")
    for name, some in (("train", slice(0, 24)), ("heldout", slice(0, 5))):
        lines = (ROOT / f"specs/datasets/dates_{name}.jsonl").read_text().splitlines()[some]
        items = [json.loads(line) for line in lines]
        for number, item in enumerate(items):
            item["answer"] = " ".join([item["answer"]] * (1 + number % 4))
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return (
        *OVERRIDES,
        f"dataset.items={{file: {folder}/train.jsonl}}",
        f"dataset.splits={{heldout: {{file: {folder}/heldout.jsonl}}}}",
    )


class Lab:
    """One installation with a worker for every run of this module."""

    def __init__(self, home: Path, small: tuple[str, ...]) -> None:
        self.rlx, self._small, self._home = Rlx(home), small, home

    def submit(self, *hardware: str, steps: int = LONGER) -> str:
        """The handle of a run that computes everything anew."""
        words = (*self._small, f"algorithm.steps={steps}", *hardware, "--no-cache", "--no-wait")
        return self.rlx("submit", "specs/dates_sft.yaml", *words).strip()

    def query(self, statement: Select[Any]) -> list[Any]:
        database = open_database(f"sqlite:///{self._home / 'rlx.db'}")
        try:
            with database.read() as session:
                return list(session.execute(statement))
        finally:
            database.engine.dispose()

    def losses(self, handle: str) -> dict[int, float]:
        """The training loss of every step."""
        points = (
            select(Metric.step, Metric.value)
            .join(Series, Series.id == Metric.series_id)
            .join(Run, Run.id == Series.run_id)
            .where(Series.key == "train/loss", Run.handle == handle)
        )
        return dict(tuple(row) for row in self.query(points))

    def trained(self, handle: str) -> dict[str, torch.Tensor]:
        """The weights that training left, as `from_pretrained` reads them."""
        uri = (
            select(Artifact.uri)
            .join(Stage, Stage.artifact_id == Artifact.id)
            .join(Run, Run.id == Stage.run_id)
            .where(Stage.name == "train", Run.handle == handle)
        )
        ((found,),) = self.query(uri)
        folder = Path(found.removeprefix("file://")) / "latest" / "policy"
        return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())

    def pid_past(self, handle: str, step: int) -> int | None:
        """The pid of the stage `train`, once it is past that step."""
        if len(self.losses(handle)) < step:
            return None
        pids = (
            select(Attempt.pid)
            .join(Stage, Stage.id == Attempt.stage_id)
            .join(Run, Run.id == Stage.run_id)
            .where(Stage.name == "train", Run.handle == handle)
        )
        return next((pid for (pid,) in self.query(pids) if pid is not None), None)


@pytest.fixture(scope="module")
def lab(small: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("home"), small)
    worker = lab.rlx.start("worker", "--slots", "1")
    yield lab
    worker.terminate()
    worker.communicate(timeout=60)


@pytest.fixture(scope="module")
def alone(lab: Lab) -> str:
    """The run in one process."""
    handle = lab.submit()
    lab.rlx("watch", handle)
    return handle


@pytest.mark.parametrize(
    "hardware",
    [
        pytest.param(DDP, id="ddp"),
        pytest.param((*DDP, "hardware.parallel=fsdp", "hardware.checkpoint_activations=true"), id="fsdp"),
        pytest.param((*ZERO, "hardware.zero=3"), id="zero3", marks=pytest.mark.deepspeed),
        pytest.param((*ZERO, "hardware.zero=1"), id="zero1", marks=pytest.mark.deepspeed),
    ],
)
def test_two_ranks_compute_what_one_does(hardware: tuple[str, ...], lab: Lab, alone: str) -> None:
    handle = lab.submit(*hardware, steps=STEPS)
    lab.rlx("watch", handle)

    expected, found = lab.losses(alone), lab.losses(handle)
    assert found == {step: pytest.approx(expected[step], rel=1e-3) for step in range(1, STEPS + 1)}
    shapes = {name: weight.shape for name, weight in lab.trained(alone).items()}
    assert {name: weight.shape for name, weight in lab.trained(handle).items()} == shapes


def test_a_rank_that_is_killed_ends_the_stage_and_one_finishes_what_two_began(lab: Lab, alone: str) -> None:
    handle = lab.submit(*DDP)
    stage = eventually(lambda: lab.pid_past(handle, 10), "ten steps in two ranks")
    (other,) = (int(child) for child in Path(f"/proc/{stage}/task/{stage}/children").read_text().split())

    os.kill(other, signal.SIGKILL)

    said = lab.rlx.error("watch", handle, code=1)
    assert "rank 1: the stage's process was killed (SIGKILL)" in said
    assert not Path(f"/proc/{stage}").exists()
    lab.rlx("resume", handle, "hardware.launcher=single")
    lab.rlx("watch", handle)
    assert lab.losses(handle) == {step: pytest.approx(loss, rel=1e-3) for step, loss in lab.losses(alone).items()}


@pytest.mark.deepspeed
@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param((*DDP, "hardware.parallel=fsdp"), (*ZERO, "hardware.zero=3"), id="fsdp, zero3"),
        pytest.param((*ZERO, "hardware.zero=2"), ("hardware.launcher=single",), id="zero2, single"),
        pytest.param((*ZERO, "hardware.zero=3"), (*ZERO, "hardware.zero=1"), id="zero3, zero1"),
    ],
)
def test_cancelled_ranks_leave_a_checkpoint_and_go_on_in_another_layout(
    first: tuple[str, ...], then: tuple[str, ...], lab: Lab, alone: str
) -> None:
    handle = lab.submit(*first)
    stage = eventually(lambda: lab.pid_past(handle, 10), "ten steps in two ranks")

    lab.rlx("cancel", handle, "--grace", "60s")

    lab.rlx("watch", handle, code=1)
    assert not Path(f"/proc/{stage}").exists()
    lab.rlx("resume", handle, *then)
    lab.rlx("watch", handle)
    assert lab.losses(handle) == {step: pytest.approx(loss, rel=1e-3) for step, loss in lab.losses(alone).items()}


def test_a_run_goes_on_on_other_hardware_and_as_nothing_else(lab: Lab) -> None:
    handle = lab.submit("seed=1")
    assert "`rlx cancel` it" in lab.rlx.error("resume", handle, "hardware.threads=2", code=5)
    lab.rlx("cancel", handle)
    lab.rlx("watch", handle, code=1)

    assert "rlx submit" in lab.rlx.error("resume", handle, "algorithm.lr=1", code=2)
    assert "changes what the stage" in lab.rlx.error("resume", handle, "hardware.precision=bfloat16", code=2)
    assert "set gpus, or processes" in lab.rlx.error("resume", handle, "hardware.launcher=deepspeed", code=2)
