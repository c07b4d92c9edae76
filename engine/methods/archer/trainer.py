"""ArCHer's iteration: play, learn to rank, learn to speak.

Episodes stay alive across iterations, so every decision of a long one is met. All draws come from generators derived
from the seed and a counter; activations are forgotten wherever a resumed run could start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine.errors import SpecError
from engine.lm.noise import NoiseKey
from engine.lm.policy import Policy
from engine.methods.archer.config import Archer
from engine.methods.archer.losses import utterance_rewards
from engine.methods.archer.ranker import Ids, Ranker
from engine.methods.archer.replay import ReplayBuffer, Transition, ids
from engine.methods.dialogue.environment import Episode, Utterance
from engine.methods.dialogue.improve import TokenLearner
from engine.methods.dialogue.play import Costs, Speaker, Valuer, best
from engine.methods.dialogue.tokens import Group, Trajectory
from engine.methods.maths.schedules import linear_decay
from engine.runtime.context import SaveModel
from engine.runtime.seeds import derive
from engine.store.fingerprints import Layer

TRAIN = "train"


class ArcherTrainer:
    """Both levels of ArCHer; see `dialogue.course.Trainee`."""

    def __init__(
        self,
        config: Archer,
        *,
        seed: int,
        policy: Policy,
        speakers: Mapping[str, Speaker],
        ranker: Ranker,
        generator: TokenLearner | None,
    ) -> None:
        self.config, self.seed, self.policy = config, seed, policy
        self.speakers, self.ranker, self.generator = speakers, ranker, generator
        self.costs = Costs()
        self._replay = ReplayBuffer(config.ranker.replay.capacity)
        self._started = 0
        self._decisions = 0
        self._episodes = [self._fresh_episode() for _ in range(config.episodes.environments)]

    @property
    def ready(self) -> bool:
        """Whether the replay holds enough to learn from."""
        return len(self._replay) >= self.config.ranker.replay.min_fill

    def gather(self) -> None:
        """One iteration's worth of random decisions."""
        self._play(epsilon=1.0)

    def iterate(self, number: int) -> dict[str, float]:
        """Play, then update the critic, its target, and the generator."""
        config, index = self.config, number - 1
        torch.manual_seed(derive(self.seed, "iteration", number))
        rng = np.random.default_rng(derive(self.seed, "updates", number))
        schedule = config.ranker.epsilon
        epsilon = linear_decay(
            index, start=schedule.start, end=schedule.end, over=round(schedule.over * config.iterations)
        )
        groups, scores = self._play(epsilon=epsilon)
        metrics = {"epsilon": epsilon, "replay": float(len(self._replay))}
        if scores:
            metrics["rollout/score"] = sum(scores) / len(scores)
        metrics |= self.ranker.update(
            lambda n: self._replay.sample(n, rng), lambda states: self._own_utterances(states, "critic", number)
        )
        self.ranker.synchronise(index)
        if self.generator is not None and index >= config.generator.start_after:
            if config.generator.states == "replay":
                groups = self._replayed_groups(rng, number)
            metrics |= self.generator.improve(groups, rng)
        return metrics

    def _play(self, *, epsilon: float) -> tuple[list[Group], list[float]]:
        """This iteration's decisions in every environment; returns them as groups, and final scores."""
        speaker = self.speakers[TRAIN]
        speaker.sampler.refresh()
        groups: list[Group] = []
        scores: list[float] = []
        for _ in range(self.config.episodes.decisions):
            episodes = list(self._episodes)
            contexts = [list(episode.tokens) for episode in episodes]
            proposals = speaker.propose(episodes, self.config.ranker.candidates, seed=derive(self.seed, "play"))
            self.costs.generated_tokens += sum(len(u.token_ids) for group in proposals for u in group)
            for episode, candidates in zip(episodes, proposals, strict=True):
                if episode.turns:
                    self._remember(episode, candidates)
            values = self._values(contexts, proposals)
            chosen = self._choose(values, epsilon)
            said = [group[index] for group, index in zip(proposals, chosen, strict=True)]
            speaker.game.say(episodes, said)
            for place, (episode, context) in enumerate(zip(episodes, contexts, strict=True)):
                rewards = utterance_rewards(
                    values[place],
                    signal=self.config.signal,
                    executed=chosen[place],
                    earned=episode.rewards[-1] if episode.done else None,
                )
                groups.append(_group(context, proposals[place], rewards))
                if episode.score is not None:
                    self._remember(episode, ())
                    scores.append(episode.score)
                    self._episodes[place] = self._fresh_episode()
        self.costs.scored_episodes += len(scores)
        return groups, scores

    def _values(self, contexts: Sequence[Ids], proposals: Sequence[Sequence[Utterance]]) -> list[tuple[float, ...]]:
        candidates = [[utterance.token_ids for utterance in group] for group in proposals]
        if self.config.signal == "advantage":
            return self.ranker.advantages(contexts, candidates)
        return self.ranker.values(contexts, candidates)

    def _choose(self, values: Sequence[Sequence[float]], epsilon: float) -> list[int]:
        """ε-greedy, each environment for itself."""
        rng = np.random.default_rng(derive(self.seed, "choice", self._decisions))
        self._decisions += 1
        explore, random = rng.random(len(values)), rng.random(len(values))
        return [int(random[i] * len(row)) if explore[i] < epsilon else best(row) for i, row in enumerate(values)]

    def _remember(self, episode: Episode, candidates: Sequence[Utterance]) -> None:
        """The episode's last utterance as a transition, now that it is known what can be said next."""
        start, end = episode.spans[-1]
        reward = episode.rewards[-1]
        if self.config.ranker.sigmoid and not 0.0 <= reward <= 1.0:
            raise SpecError(
                f"an utterance earned {reward:g}, and the ranker's values lie between 0 and 1: "
                "write algorithm.ranker.sigmoid: false, or let score_fn return numbers between 0 and 1"
            )
        self._replay.add(
            Transition(
                state=ids(episode.tokens[:start]),
                action=ids(episode.tokens[start:end]),
                reward=reward,
                done=episode.done,
                reply=ids(episode.tokens[end:]),
                candidates=tuple(ids(utterance.token_ids) for utterance in candidates),
            )
        )

    def _fresh_episode(self) -> Episode:
        game = self.speakers[TRAIN].game
        rng = np.random.default_rng(derive(self.seed, "item", self._started))
        episode = game.start(self._started, int(rng.integers(len(game.items))))
        self._started += 1
        return episode

    def _own_utterances(self, states: Sequence[Ids], purpose: str, number: int) -> list[Ids]:
        return [utterance.token_ids for utterance in self._completions(states, purpose, number)]

    def _completions(self, states: Sequence[Ids], purpose: str, number: int) -> list[Utterance]:
        """One utterance of the present policy in each state."""
        seed = derive(self.seed, purpose, number)
        keys = [NoiseKey(seed, index) for index in range(len(states))]
        said = [group[0] for group in self.speakers[TRAIN].complete(states, 1, keys)]
        self.costs.generated_tokens += sum(len(utterance.token_ids) for utterance in said)
        return said

    def _replayed_groups(self, rng: np.random.Generator, number: int) -> list[Group]:
        """Remembered states, each with a fresh utterance that is worth what the critic says of it."""
        states = [row.state.tolist() for row in self._replay.sample(self.config.generator.batch_size, rng)]
        self.ranker.learner.trace.note(Layer.DATA, states)
        said = self._completions(states, "actor", number)
        worth = self.ranker.advantages if self.config.signal == "advantage" else self.ranker.values
        values = worth(states, [[utterance.token_ids] for utterance in said])
        return [_group(state, [u], value) for state, u, value in zip(states, said, values, strict=True)]

    def rankings(self) -> Sequence[tuple[str, int, Valuer | None]]:
        """The whole policy, and its generator alone."""
        return (("score", self.config.ranker.candidates, valuer(self.ranker)), ("score/generator", 1, None))

    def models(self) -> Mapping[str, SaveModel]:
        """Writers of both levels."""
        return {"generator": self.policy.save, "ranker": self.ranker.critic.save}

    def state(self) -> dict[str, Any]:
        """Everything an iteration changes; randomness is derived from its counters."""
        return {
            "ranker": self.ranker.state(),
            "generator": None if self.generator is None else self.generator.state(),
            "replay": self._replay.state(),
            "episodes": [episode.state() for episode in self._episodes],
            "started": self._started,
            "decisions": self._decisions,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.ranker.load_state(state["ranker"])
        if self.generator is not None:
            self.generator.load_state(state["generator"])
        self._replay = ReplayBuffer.of(state["replay"])
        self._episodes = [Episode.of(episode) for episode in state["episodes"]]
        self._started, self._decisions = int(state["started"]), int(state["decisions"])


def valuer(ranker: Ranker) -> Valuer:
    """The ranker as a judge of proposals."""

    def values(episodes: Sequence[Episode], proposals: Sequence[Sequence[Utterance]]) -> list[tuple[float, ...]]:
        return ranker.values(
            [episode.tokens for episode in episodes], [[u.token_ids for u in group] for group in proposals]
        )

    return values


def _group(context: Ids, utterances: Sequence[Utterance], rewards: Sequence[float]) -> Group:
    return Group(
        context,
        [Trajectory(u.token_ids, u.logps, reward) for u, reward in zip(utterances, rewards, strict=True)],
    )
