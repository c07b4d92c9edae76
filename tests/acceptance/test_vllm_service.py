"""vLLM itself as a service: it serves a stage, and is gone with all its processes when the stage is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.lm import scratch
from engine.lm.policy import Policy
from engine.plan.stage import Stage
from engine.runtime import trees
from engine.settings import Settings
from engine.spec.services import VLLM
from engine.store.processes import process_started
from tests.acceptance.lab import Lab
from tests.waiting import until

HERE = Path(__file__).parent


@pytest.fixture
def lab(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("RLX_PRELOAD", "")
    lab = Lab(settings, tmp_path / "gate")
    yield lab
    for worker in lab.workers:
        worker.kill()
        worker.wait()
    lab.db.close()


@pytest.mark.vllm
def test_vllm_serves_a_stage_and_leaves_nobody_when_that_is_killed(lab: Lab, tmp_path: Path) -> None:
    # llama-nano's heads are narrower than what vLLM computes on a CPU.
    tokenizer = scratch.train_tokenizer(["the cat sat on the mat user assistant"] * 4, 280)
    torch.manual_seed(0)
    Policy(scratch.build("llama-micro", tokenizer, seed=3), tokenizer).save(tmp_path / "model")
    reader = VLLM(
        kind="vllm",
        model=str(tmp_path / "model"),
        max_length=64,
        dtype="float32",
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
        args=("--enforce-eager", "--max-num-seqs", "4"),
        start_timeout=240.0,
    )
    config = {"services": {"reader": reader.model_dump(mode="json")}}
    stage = Stage("generate", "test.g", "service_stages:generate", (), config=config, extra={"gate": str(lab.gate)})
    run = lab.submit(stage)
    lab.embedded(run)
    log = lab.settings.logs / run.handle / "generate-1.reader.log"
    marker = lab.gate.with_suffix(".reached")

    until(lambda: marker.exists() or any(attempt.error for attempt in lab.attempts(run, "generate")))

    assert marker.exists(), lab.attempts(run, "generate")[0].error
    (allowed, answer), (refused, _) = json.loads(marker.read_text())
    assert (allowed, refused) == (200, 401), answer
    assert answer["usage"]["completion_tokens"] == 5
    assert "Application startup complete" in log.read_text()

    pid = int(until(lambda: lab.attempts(run, "generate")[0].pid))
    family = trees.below(pid)
    assert len(family) >= 3, "the keeper, the server, and its engine core at least"
    os.kill(pid, signal.SIGKILL)
    until(lambda: not any(process_started(one) for one in [pid, *family]), "nobody is left", 30)
