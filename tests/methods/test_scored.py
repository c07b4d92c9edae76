"""Which stages of a real plan run beside the service that scores, and what becomes of it in the tiny twin."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import SpecError
from engine.methods import registry
from engine.methods.tiny import twin
from engine.spec.load import Loaded, load

SPEC = """
version: 1
name: scored
dataset:
  items: [{{prompt: "Say a word."}}]
  {score}
services:
  judge: {{kind: reward, model: org/judge, gpus: 1}}
algorithm: {method}
model: org/model
hardware: {{gpus: 1}}
"""


def loaded(folder: Path, *, method: str = "reinforce", score: str = "score_by: judge") -> Loaded:
    (folder / "scored.yaml").write_text(SPEC.format(score=score, method=method))
    return load(folder / "scored.yaml", [], methods=registry.configs())


@pytest.mark.parametrize("method", ["archer", "ppo", "reinforce"])
def test_stages_that_score_run_beside_it_and_the_one_that_makes_the_model_does_not(tmp_path: Path, method: str) -> None:
    spec = loaded(tmp_path, method=method)

    plan = registry.plan(spec.experiment, frozenset(spec.set_paths))

    found = {stage.name: (list(stage.config.get("services", {})), stage.resources.gpus) for stage in plan.stages}
    assert found == {"model": ([], 1), "train": (["judge"], 2), "evaluate": (["judge"], 2)}


def test_its_twin_leases_no_gpu(tmp_path: Path) -> None:
    small = registry.plan(twin(loaded(tmp_path)).experiment)
    assert {stage.resources.needs.gpus for stage in small.stages} == {0}
    assert "judge" in small.stage("train").config["services"]


def test_a_service_that_scores_nothing_is_an_error(tmp_path: Path) -> None:
    spec = loaded(tmp_path, score="score_fn: 'def score_fn(text, answer): return 1.0'")
    with pytest.raises(SpecError, match="no stage of this plan uses the service 'judge'"):
        registry.plan(spec.experiment, frozenset(spec.set_paths))
