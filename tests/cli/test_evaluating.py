"""The plan of `rlx eval`: the method's evaluation alone, fed by a checkpoint, everything else from the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.cli.evaluating import changed_spec, evaluation_plan
from engine.cli.models import FoundCheckpoint
from engine.errors import Refused, SpecError
from engine.methods import registry
from engine.plan.hashing import cache_key
from engine.plan.stage import Plan, Stage
from engine.spec.load import load, load_resolved

ROOT = Path(__file__).resolve().parents[2]
FOUND = FoundCheckpoint("best-lang-1", "train", 40, Path("/c/step-40"), "ab" * 32)


def test_training_is_left_out_and_the_model_stage_keeps_its_cache_key():
    resolved = load(ROOT / "specs" / "best_lang.yaml", methods=registry.configs()).resolved
    original = registry.plan(load_resolved(resolved, registry.configs()))
    changed = changed_spec(resolved, 3, None)

    plan = evaluation_plan(original, registry.plan(changed.experiment), FOUND)

    assert plan.name == "best_lang_eval"
    assert [stage.name for stage in plan.stages] == ["model", "evaluate"]
    model, evaluate = plan.stages
    assert cache_key(model, plan.seed, {}) == cache_key(original.stage("model"), original.seed, {})
    assert evaluate.inputs == {"model": "model"}
    assert evaluate.extra["checkpoint"] == {"path": "/c/step-40", "sha256": "ab" * 32, "step": 40}
    assert evaluate.config["evaluation"]["runs_per_item"] == 3


def test_another_dataset_reaches_the_evaluation_and_not_the_model(tmp_path):
    resolved = load(ROOT / "specs" / "best_lang.yaml", methods=registry.configs()).resolved
    text = (ROOT / "specs" / "datasets" / "best_lang.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("answer: Rust", "answer: Zig"))

    changed = changed_spec(resolved, None, other)
    original = registry.plan(load_resolved(resolved, registry.configs()))
    model, evaluate = evaluation_plan(original, registry.plan(changed.experiment), FOUND).stages

    assert evaluate.config["dataset"]["items"][0]["answer"] == "Zig"
    assert model.config["dataset"]["items"][0]["answer"] == "Rust"


def test_a_dataset_with_a_mistake_is_refused_with_its_place(tmp_path):
    resolved = load(ROOT / "specs" / "best_lang.yaml", methods=registry.configs()).resolved
    other = tmp_path / "other.yaml"
    other.write_text("itmes: []\n")
    with pytest.raises(SpecError) as refused:
        changed_spec(resolved, None, other)
    assert any(problem.file == str(other) and problem.line == 1 for problem in refused.value.problems)


def test_a_method_that_cannot_evaluate_apart_is_refused():
    plan = Plan("x", 0, (Stage("train", "sft.train", "a:b", ()),))
    with pytest.raises(Refused, match="no stage for this"):
        evaluation_plan(plan, plan, FOUND)
