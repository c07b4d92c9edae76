"""Token-level PPO's stages: make the model, train it, evaluate what came out. Light: code is named, not imported."""

from __future__ import annotations

from engine.methods.dialogue.plan import three_stages
from engine.methods.ppo.config import PPO
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of a ppo experiment."""
    return three_stages(
        kind="ppo.train",
        train="engine.methods.ppo.stages:train",
        evaluate="engine.methods.dialogue.final:evaluate",
    )


def tiny(config: PPO) -> PPO:
    """The same algorithm at two iterations of two episodes."""
    episodes = config.episodes.model_copy(update={"environments": min(config.episodes.environments, 2)})
    return config.model_copy(update={"iterations": 2, "episodes": episodes})
