"""Token-level Reinforce's stages: make the model, train it, evaluate what came out. Light: names code, imports none."""

from __future__ import annotations

from engine.methods.reinforce.config import Reinforce
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of a reinforce experiment."""
    reads = ("dataset", "algorithm", "evaluation", "model")
    return [
        Stage(name="model", kind="lm.prepare", run="engine.lm.warmup:prepare", reads=("model", "dataset")),
        Stage(
            name="train",
            kind="reinforce.train",
            run="engine.methods.reinforce.stages:train",
            reads=reads,
            inputs={"model": "model"},
        ),
        Stage(
            name="evaluate",
            kind="dialogue.evaluate",
            run="engine.methods.dialogue.final:evaluate",
            reads=reads,
            inputs={"model": "model", "train": "train"},
        ),
    ]


def tiny(config: Reinforce) -> Reinforce:
    """The same algorithm at two iterations of two episodes."""
    episodes = config.episodes.model_copy(update={"environments": min(config.episodes.environments, 2)})
    return config.model_copy(update={"iterations": 2, "episodes": episodes})
