"""The stages of a reward model: make its backbone, train it, evaluate what came out. Light."""

from __future__ import annotations

from dataclasses import replace

from engine.methods.dialogue.plan import three_stages
from engine.methods.reward.config import Reward
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment

_STAGES = "engine.methods.reward.stages"


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of a reward experiment. The tokenizer of a scratch model learns from the answers, too."""
    model, *others = three_stages(
        kind="reward.train",
        train=f"{_STAGES}:train",
        evaluate=f"{_STAGES}:evaluate",
        evaluates="reward.evaluate",
    )
    return [replace(model, kind="reward.prepare", run=f"{_STAGES}:prepare"), *others]


def tiny(config: Reward) -> Reward:
    """The same algorithm at two steps of two preferences."""
    return config.model_copy(update={"steps": 2, "batch_size": min(config.batch_size, 2)})
