"""The plan that methods on a fixed set of examples share: make the model, train it, evaluate what came out. Light."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

from engine.methods.dialogue.plan import three_stages
from engine.methods.supervised.config import Training
from engine.plan.stage import Stage

Config = TypeVar("Config", bound=Training)


def course_stages(method: str, sampling: Collection[str] = ()) -> list[Stage]:
    """`model` → `train` → `evaluate`, as the method's own `stages` module has them.

    The model is its own affair: the tokenizer of a scratch model learns from the examples, whatever those are.
    """
    code = f"engine.methods.{method}.stages"
    model, train, evaluate = three_stages(
        kind=f"{method}.train",
        train=f"{code}:train",
        evaluate=f"{code}:evaluate",
        evaluates=f"{method}.evaluate",
        sampling=sampling,
    )
    return [
        replace(model, kind=f"{method}.prepare", run=f"{code}:prepare"),
        replace(train, distributed=True),
        evaluate,
    ]


def two_steps(config: Config) -> Config:
    """The same algorithm at two steps of two examples."""
    return config.model_copy(update={"steps": 2, "batch_size": min(config.batch_size, 2)})
