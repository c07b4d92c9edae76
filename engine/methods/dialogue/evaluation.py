"""Scores of a policy on a dataset split: `runs` independent episodes of every item, with the record of each decision.

Sampling noise depends on the evaluation's seed, the item and the run, so two policies evaluated under one seed meet
the same luck, and results do not depend on how episodes were batched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.methods.dialogue.environment import Episode
from engine.methods.dialogue.play import Costs, Decision, Speaker, Valuer, play_out
from engine.runtime.context import Evaluation, ItemScore, Sample

ROWS = 256
"""Candidates sampled at the same time, at most."""


@dataclass(frozen=True)
class Played:
    """All episodes of one evaluation: for each item, `runs` of them in order."""

    split: str
    episodes: tuple[Episode, ...]
    decisions: tuple[tuple[Decision, ...], ...]

    @property
    def items(self) -> list[ItemScore]:
        """The scores of each item's runs."""
        scores: dict[int, list[float]] = {}
        for episode in self.episodes:
            scores.setdefault(episode.item, []).append(_score(episode))
        return [ItemScore(item, tuple(values)) for item, values in sorted(scores.items())]

    @property
    def mean(self) -> float:
        """The mean score over all episodes."""
        return sum(map(_score, self.episodes)) / len(self.episodes)

    def evaluation(self, step: int, metric: str, functions_hash: str, costs: Costs) -> Evaluation:
        """These scores as the store keeps them."""
        return Evaluation(
            step=step,
            metric=metric,
            items=self.items,
            split=self.split,
            functions_hash=functions_hash,
            cost=costs.as_dict(),
        )

    def samples(self, step: int, *, kind: str = "episode", per_item: int | None = None) -> list[Sample]:
        """The episodes with every candidate that was considered; at most `per_item` of each item."""
        kept: dict[int, int] = {}
        samples = []
        for episode, decisions in zip(self.episodes, self.decisions, strict=True):
            run = kept.get(episode.item, 0)
            kept[episode.item] = run + 1
            if per_item is not None and run >= per_item:
                continue
            samples.append(
                Sample(
                    step=step,
                    text=episode.text,
                    score=episode.score,
                    item=episode.item,
                    split=self.split,
                    kind=kind,
                    data={"run": run, "tokens": len(episode.tokens), "steps": [_step(d) for d in decisions]},
                )
            )
        return samples


def evaluate(speaker: Speaker, split: str, *, runs: int, candidates: int, valuer: Valuer | None, seed: int) -> Played:
    """Play every item of the speaker's game `runs` times."""
    episodes = [
        speaker.game.start(item * runs + run, item) for item in range(len(speaker.game.items)) for run in range(runs)
    ]
    at_once = max(1, ROWS // candidates)
    decisions: list[tuple[Decision, ...]] = []
    for start in range(0, len(episodes), at_once):
        chunk: Sequence[Episode] = episodes[start : start + at_once]
        decisions += map(tuple, play_out(speaker, chunk, candidates=candidates, valuer=valuer, seed=seed))
    return Played(split, tuple(episodes), tuple(decisions))


def _score(episode: Episode) -> float:
    assert episode.score is not None  # play_out returns only when every episode has ended
    return episode.score


def _step(decision: Decision) -> list[dict[str, object]]:
    return [
        {
            "text": candidate.text,
            "q": decision.values[index] if decision.values is not None else None,
            "chosen": index == decision.chosen,
        }
        for index, candidate in enumerate(decision.candidates)
    ]
