"""Token-level Reinforce's stages: make the model, train it, evaluate what came out. Light: names code, imports none."""

from __future__ import annotations

from engine.methods.dialogue.plan import three_stages
from engine.methods.reinforce.config import Reinforce
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of a reinforce experiment."""
    return three_stages(
        kind="reinforce.train",
        train="engine.methods.reinforce.stages:train",
        evaluate="engine.methods.dialogue.final:evaluate",
    )


def tiny(config: Reinforce) -> Reinforce:
    """The same algorithm at two iterations of two episodes."""
    episodes = config.episodes.model_copy(update={"environments": min(config.episodes.environments, 2)})
    return config.model_copy(update={"iterations": 2, "episodes": episodes})
