"""ArCHer's stages: make the model, train both levels, evaluate what came out. Light: code is named, not imported."""

from __future__ import annotations

from engine.methods.archer.config import Archer
from engine.methods.dialogue.plan import three_stages
from engine.plan.stage import Stage
from engine.spec.experiment import Experiment


def stages(experiment: Experiment) -> list[Stage]:
    """The plan of an ArCHer experiment."""
    return three_stages(
        kind="archer.train",
        train="engine.methods.archer.stages:train",
        evaluate="engine.methods.archer.stages:evaluate",
        evaluates="archer.evaluate",
    )


def tiny(config: Archer) -> Archer:
    """The same algorithm at two iterations, each of its parts still at work."""
    ranker, generator, episodes = config.ranker, config.generator, config.episodes
    fill = min(ranker.replay.min_fill, 4)
    return config.model_copy(
        update={
            "iterations": 2,
            "episodes": episodes.model_copy(
                update={"environments": min(episodes.environments, 2), "decisions": min(episodes.decisions, 2)}
            ),
            "ranker": ranker.model_copy(
                update={
                    "candidates": min(ranker.candidates, 2),
                    "batch_size": min(ranker.batch_size, 2),
                    "updates": 2,
                    "accumulate": min(ranker.accumulate, 2),
                    "replay": ranker.replay.model_copy(
                        update={"capacity": min(ranker.replay.capacity, 64), "min_fill": fill}
                    ),
                    "target": ranker.target.model_copy(update={"every": 1}),
                }
            ),
            "generator": generator.model_copy(
                update={"start_after": 0, "epochs": 1, "batch_size": min(generator.batch_size, 2)}
            ),
        }
    )
