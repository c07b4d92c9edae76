"""Playing episodes with a policy: it proposes utterances, somebody chooses one, the game goes on.

The sampler draws for all episodes at once, with noise keyed by episode, turn, candidate and position, so
what is said depends on nothing else in the batch. Learning is left to the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.lm.noise import NoiseKey
from engine.lm.sampler import Completion, Sampler, SamplingParams
from engine.methods.dialogue.environment import Episode, Game, Utterance


@dataclass(frozen=True)
class Decision:
    """What could have been said, what each was worth to the chooser, and which was said."""

    candidates: tuple[Utterance, ...]
    values: tuple[float, ...] | None
    chosen: int


Values = list[tuple[float, ...]]
"""One number a candidate, for each episode."""
Valuer = Callable[[Sequence[Episode], Sequence[Sequence[Utterance]]], Values]
"""A ranker: what each candidate is worth in its episode's present state."""


@dataclass
class Costs:
    """How much a run has spent so far: the three axes of a learning curve."""

    scored_episodes: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        return {
            "scored_episodes": float(self.scored_episodes),
            "generated_tokens": float(self.generated_tokens),
            "seconds": self.seconds,
        }


class Speaker:
    """A policy that proposes what to say next, in any number of episodes at once."""

    def __init__(self, sampler: Sampler, game: Game) -> None:
        self.sampler, self.game = sampler, game
        self._params = SamplingParams(max_new_tokens=game.longest, max_length=game.longest, eos=game.eos)

    def propose(self, episodes: Sequence[Episode], n: int, *, seed: int) -> list[tuple[Utterance, ...]]:
        """`n` candidates for each episode's next utterance."""
        keys = [NoiseKey(seed, episode.serial, episode.turns) for episode in episodes]
        return self.complete([episode.tokens for episode in episodes], n, keys)

    def complete(
        self, contexts: Sequence[Sequence[int]], n: int, keys: Sequence[NoiseKey]
    ) -> list[tuple[Utterance, ...]]:
        """`n` candidates after each context."""
        stops = self.game.functions.stops()
        groups = self.sampler.generate(contexts, n, self._params, stops, keys)
        return [tuple(self._utterance(completion) for completion in group) for group in groups]

    def _utterance(self, completion: Completion) -> Utterance:
        ended = completion.finish == "eos" and not self.game.functions.has_reply
        return Utterance(
            token_ids=tuple(completion.token_ids),
            logps=tuple(completion.logps),
            text=completion.text,
            done=completion.done or ended,
        )


def best(values: Sequence[float]) -> int:
    """Index of the first maximum."""
    return max(range(len(values)), key=values.__getitem__)


def play_out(
    speaker: Speaker, episodes: Sequence[Episode], *, candidates: int, valuer: Valuer | None, seed: int
) -> list[list[Decision]]:
    """Play episodes to their ends, always saying the best candidate (the first, if nobody values them)."""
    records: list[list[Decision]] = [[] for _ in episodes]
    going = [index for index, episode in enumerate(episodes) if not episode.done]
    while going:
        live = [episodes[index] for index in going]
        proposals = speaker.propose(live, candidates, seed=seed)
        values = valuer(live, proposals) if valuer is not None else None
        said = []
        for row, index in enumerate(going):
            chosen = best(values[row]) if values is not None else 0
            records[index].append(Decision(proposals[row], values[row] if values is not None else None, chosen))
            said.append(proposals[row][chosen])
        speaker.game.say(live, said)
        going = [index for index in going if not episodes[index].done]
    return records
