"""A spec to start from, two toy methods for it to name, and a folder to write it to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from pydantic import Field

from engine.errors import Problem, SpecError
from engine.spec.base import SpecModel
from engine.spec.load import Loaded, load

SPEC = """\
version: 1
name: best_lang
description: Teach a small model to prefer one answer.
seed: 0
dataset:
  main_prompt: You are a helpful assistant.
  items:
    - prompt: Name the best language.
      answer: Rust
  score_fn: |
    def score_fn(text: str, answer: str):
        return answer in text
  done_fn: |
    def done_fn(text: str):
        return "." in text
  split_fn: |
    def split_fn(output: str):
        return "\\n" in output
algorithm:
  name: archer
  iterations: 60
  ranker: {candidates: 8}
model:
  name: scratch:llama-nano
  warmup:
    template: The best one is {lang}.
    slots: {lang: {Go: 3, Rust: 1}}
hardware: {device: auto, gpus: 0, launcher: single, precision: auto, queue: default, timeout: 2h}
evaluation: {every: 10, runs_per_item: 10}
"""


class Ranker(SpecModel):
    """The upper level."""

    candidates: int = Field(8, ge=1)
    """How many."""
    lr: float = Field(1e-3, gt=0)
    clip: float | None = Field(1.0, gt=0)
    sigmoid: bool = True
    kind: Literal["dqn", "qv"] = "dqn"


class Archer(SpecModel):
    """Two levels."""

    needs: ClassVar[tuple[str, ...]] = ("score_fn",)
    name: Literal["archer"] = "archer"
    iterations: int = Field(40, ge=1)
    ranker: Ranker = Ranker()


class PPO(SpecModel):
    """One level."""

    name: Literal["ppo"] = "ppo"
    iterations: int = Field(40, ge=1)
    epochs: int = Field(2, ge=1)


METHODS: Mapping[str, type[SpecModel]] = {"archer": Archer, "ppo": PPO}


class Desk:
    """A folder with files in it, and the loader over them."""

    spec = SPEC
    methods = METHODS

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, text: str = SPEC, name: str = "spec.yaml") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def load(self, text: str = SPEC, *overrides: str) -> Loaded:
        return load(self.write(text), overrides, methods=METHODS)

    def problems(self, text: str = SPEC, overrides: Sequence[str] = ()) -> tuple[Problem, ...]:
        with pytest.raises(SpecError) as caught:
            load(self.write(text), overrides, methods=METHODS)
        return caught.value.problems


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk in a folder of its own, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path)


@pytest.fixture
def edited() -> Callable[..., str]:
    """The spec with pieces replaced; each must stand in it exactly once."""

    def edit(*changes: tuple[str, str]) -> str:
        text = SPEC
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return text

    return edit
