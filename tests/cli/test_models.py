"""What the models of services lead to when a plan is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.cli.models import with_models
from engine.errors import NotFound
from engine.plan.hashing import cache_key
from engine.plan.stage import Plan, Stage


def plan(**service: Any) -> Plan:
    defaults = {"kind": "vllm", "gpus": 0}
    return Plan("p", 0, (Stage("train", "k", "m:f", (), config={"services": {"reader": defaults | service}}),))


def key(made: Plan) -> str:
    return cache_key(made.stages[0], 0, {})


def test_a_run_is_looked_up_and_counts_in_the_key(lab: Any) -> None:
    run = lab.submit()
    path = lab.checkpoint(lab.training(run), 20, "best")

    found = with_models(plan(model=f"run:{run.handle}@best"), "org/model")

    assert found.stages[0].extra["served"] == {
        "reader": {"model": {"path": str(path / "generator"), "sha256": "c" * 64}}
    }
    assert key(found) != key(plan(model=f"run:{run.handle}@best"))


def test_of_a_reward_models_checkpoint_the_reward_model_is_meant(lab: Any) -> None:
    run = lab.submit()
    path = lab.checkpoint(lab.training(run), 20, "best")
    (path / "reward").mkdir()
    (path / "reward" / "config.json").write_text("{}")

    found = with_models(plan(kind="reward", model=f"run:{run.handle}"), "org/model")

    assert found.stages[0].extra["served"]["reader"]["model"]["path"] == str(path / "reward")


def test_a_directory_counts_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = with_models(plan(model="org/base", lora=str(tmp_path)), "org/model")
    (tmp_path / "config.json").write_text("{ }")
    after = with_models(plan(model="org/base", lora=str(tmp_path)), "org/model")

    assert list(before.stages[0].extra["served"]["reader"]) == ["lora"]
    assert key(before) != key(after)


def test_a_hub_model_needs_no_look() -> None:
    made = plan(model="org/name@main")
    assert with_models(made, "org/model") == made


def test_a_run_that_is_not_there(lab: Any) -> None:
    with pytest.raises(NotFound):
        with_models(plan(model="run:nobody-1@best"), "org/model")
