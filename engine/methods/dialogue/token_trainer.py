"""The iteration of a token-level method: play whole episodes, then improve the policy on all their tokens.

What the methods differ in is handed over: what an episode's score is worth as a trajectory's reward, and the rule
inside the `TokenLearner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine.lm.policy import Policy
from engine.methods.dialogue.environment import Episode
from engine.methods.dialogue.improve import TokenLearner
from engine.methods.dialogue.play import Costs, Speaker, Valuer, play_out
from engine.methods.dialogue.tokens import Group, trajectory_of
from engine.runtime.context import SaveModel
from engine.runtime.seeds import derive

TRAIN = "train"
Credit = Callable[[Sequence[float]], Sequence[float]]
"""From the scores of one iteration's episodes to their trajectories' rewards."""


class TokenTrainer:
    """See `dialogue.course.Trainee`."""

    def __init__(
        self,
        *,
        seed: int,
        environments: int,
        policy: Policy,
        speakers: Mapping[str, Speaker],
        learner: TokenLearner,
        credit: Credit,
    ) -> None:
        self.seed, self.policy, self.speakers = seed, policy, speakers
        self.costs = Costs()
        self._environments, self._learner, self._credit = environments, learner, credit
        self._started = 0

    @property
    def ready(self) -> bool:
        """Always: nothing is gathered beforehand."""
        return True

    def gather(self) -> None:
        """Nothing to do."""

    def iterate(self, number: int) -> dict[str, float]:
        """Play one batch of episodes to their ends, and learn from it."""
        torch.manual_seed(derive(self.seed, "iteration", number))
        speaker = self.speakers[TRAIN]
        speaker.sampler.refresh()
        episodes = [self._fresh_episode(speaker) for _ in range(self._environments)]
        records = play_out(speaker, episodes, candidates=1, valuer=None, seed=derive(self.seed, "play"))
        scores = [episode.score for episode in episodes if episode.score is not None]
        self.costs.scored_episodes += len(scores)
        self.costs.generated_tokens += sum(len(d.candidates[0].token_ids) for record in records for d in record)
        groups = _by_prompt(episodes, self._credit(scores))
        rng = np.random.default_rng(derive(self.seed, "updates", number))
        metrics = {"rollout/score": sum(scores) / len(scores)}
        return metrics | self._learner.improve(groups, rng)

    def _fresh_episode(self, speaker: Speaker) -> Episode:
        rng = np.random.default_rng(derive(self.seed, "item", self._started))
        episode = speaker.game.start(self._started, int(rng.integers(len(speaker.game.items))))
        self._started += 1
        return episode

    def rankings(self) -> Sequence[tuple[str, int, Valuer | None]]:
        """The policy's single sample is the whole policy."""
        return (("score", 1, None),)

    def models(self) -> Mapping[str, SaveModel]:
        """The writer of the policy."""
        return {"generator": self.policy.save}

    def state(self) -> dict[str, Any]:
        """Everything an iteration changes."""
        return {"learner": self._learner.state(), "started": self._started}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._learner.load_state(state["learner"])
        self._started = int(state["started"])


def _by_prompt(episodes: Sequence[Episode], rewards: Sequence[float]) -> list[Group]:
    """Episodes of the same item together, as trajectories after their common prompt."""
    groups: dict[int, list[int]] = {}
    for index, episode in enumerate(episodes):
        groups.setdefault(episode.item, []).append(index)
    return [
        Group(
            episodes[members[0]].tokens[: episodes[members[0]].prompt],
            [trajectory_of(episodes[index], rewards[index]) for index in members],
        )
        for members in groups.values()
    ]
