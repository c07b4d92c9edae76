"""The tracking block: what it accepts, and that no cache key knows of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import SpecError
from engine.methods import registry
from engine.methods.tiny import twin
from engine.plan.hashing import cache_key
from engine.spec.load import Loaded, load

SPEC = """
version: 1
name: a
dataset: {items: [{prompt: x, answer: y}]}
algorithm: {name: sft}
model: scratch:llama-nano
tracking: %s
"""


def loaded(folder: Path, tracking: str) -> Loaded:
    (folder / "spec.yaml").write_text(SPEC % tracking)
    return load(folder / "spec.yaml", methods=registry.configs())


def keys(spec: Loaded) -> list[str]:
    plan = registry.plan(spec.experiment, spec.set_paths)
    return [cache_key(stage, 0, dict.fromkeys(stage.inputs, "0")) for stage in plan.stages]


def test_it_is_part_of_no_cache_key(tmp_path: Path) -> None:
    assert keys(loaded(tmp_path, "{}")) == keys(loaded(tmp_path, "{tensorboard: {}, wandb: {mode: online}}"))


def test_a_folder_is_relative_to_the_spec(tmp_path: Path) -> None:
    block = loaded(tmp_path, "{tensorboard: {folder: boards}}").experiment.tracking.tensorboard
    assert block is not None
    assert block.folder == str(tmp_path / "boards")


def test_a_tiny_twin_is_not_mirrored(tmp_path: Path) -> None:
    small = twin(loaded(tmp_path, "{wandb: {}}"))
    assert small.experiment.tracking.wandb is None


@pytest.mark.parametrize(
    ("tracking", "said"),
    [
        ("{tensorbord: {}}", "Did you mean"),
        ("{wandb: {mode: of}}", "offline"),
        ("{mlflow: {uri: '${env:}'}}", "only ${env:NAME} is replaced"),
        ("{mlflow: {uri: ''}}", "1 character"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, tracking: str, said: str) -> None:
    with pytest.raises(SpecError) as refused:
        loaded(tmp_path, tracking)
    assert said in str(refused.value)
