"""A policy that a reward model of an earlier run scores, which runs beside its stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.lm.reference import Source
from engine.lm.reward_model import RewardModel
from tests.acceptance.rlx_command import Rlx

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SPEC = """
version: 1
name: dates_scored
dataset:
  system_prompt: ""
  items: [{prompt: "2024-03-05"}, {prompt: "1999-12-31"}]
  score_by: judge
services:
  judge: {kind: reward, model: "run:dates-reward-1@best", keep: 2m}
algorithm: {name: reinforce, iterations: 2, episodes: {environments: 2, max_tokens: 40}}
model: scratch:llama-nano
hardware: {device: cpu, threads: 1}
evaluation: {every: 2, runs_per_item: 2}
"""


def test_a_trained_reward_model_scores_another_run(tmp_path: Path) -> None:
    rlx = Rlx(tmp_path / "home")
    rlx("submit", "specs/dates_reward.yaml", "algorithm.steps=4", "evaluation.every=2")
    (tmp_path / "scored.yaml").write_text(SPEC)

    assert rlx("submit", str(tmp_path / "scored.yaml")).strip() == "dates-scored-1"

    shown = rlx.json("show", "dates-scored-1")
    assert shown["status"] == "succeeded"
    best = next(row for row in rlx.json("show", "dates-reward-1")["checkpoints"] if "best" in row["labels"])
    model = RewardModel(
        Source(str(Path(best["uri"].removeprefix("file://")) / "reward")), max_tokens=2048, batch_tokens=10_000
    )
    samples = rlx.json("samples", "dates-scored-1", "--limit", "4")
    expected = model.score([model.of_text(sample["text"]) for sample in samples])
    assert [sample["score"] for sample in samples] == pytest.approx(expected, rel=1e-3, abs=1e-4)

    served = rlx.json("logs", "dates-scored-1", "--service", "judge")
    assert [row["stage"] for row in served] == ["train", "evaluate"]
    assert "listening on 127.0.0.1" in served[0]["text"]
    assert "train-1.judge.log" in served[1]["text"], "the second stage took over the running one"
