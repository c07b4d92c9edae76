"""SFT's stages: make the model, train it, evaluate what came out. Light: names code, imports none."""

from __future__ import annotations

from dataclasses import replace

from engine.methods.dialogue.plan import three_stages
from engine.methods.sft.config import SFT
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment

_STAGES = "engine.methods.sft.stages"


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of an sft experiment. The tokenizer of a scratch model learns from the conversations, too."""
    model, *others = three_stages(
        kind="sft.train",
        train=f"{_STAGES}:train",
        evaluate=f"{_STAGES}:evaluate",
        evaluates="sft.evaluate",
    )
    return [replace(model, kind="sft.prepare", run=f"{_STAGES}:prepare"), *others]


def tiny(config: SFT) -> SFT:
    """The same algorithm at two steps of two conversations."""
    return config.model_copy(update={"steps": 2, "batch_size": min(config.batch_size, 2)})
