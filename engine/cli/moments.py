"""Which moments `rlx verify-resume` kills a stage's process at: chosen by a seed, from an undisturbed run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.runtime.interruption import Moment
from engine.store.fingerprints import Fingerprint


@dataclass(frozen=True)
class Lived:
    """What one stage of the undisturbed run did."""

    stream: Sequence[Fingerprint]
    saves: Sequence[Moment]
    """The moments of its checkpoints: `draft` and `renamed` of each."""
    seconds: float


@dataclass(frozen=True)
class Kills:
    """The moments that are chosen, and whether one more kill is to come from outside, at any instruction."""

    moments: tuple[Moment, ...]
    outside: bool


def choose(lived: Mapping[str, Lived], count: int, seed: int) -> Kills:
    """`count` kills, fewer where the stages have not that many moments.

    First one in the middle of a save, one from outside, one where a step begins, one between a save and its record;
    the others anywhere.
    """
    chance = random.Random(seed)
    first = [_saves(lived, "draft"), None, _edges(lived), _saves(lived, "renamed")]
    moments: list[Moment] = []
    outside = False
    for some in first[:count]:
        if some is None:
            outside = True
        elif left := sorted(set(some) - set(moments)):
            moments.append(chance.choice(left))
    anywhere = sorted({*_notes(lived), *_saves(lived, "draft"), *_saves(lived, "renamed")} - set(moments))
    missing = count - len(moments) - outside
    moments += chance.sample(anywhere, min(missing, len(anywhere)))
    return Kills(tuple(sorted(moments)), outside)


def _saves(lived: Mapping[str, Lived], kind: str) -> list[Moment]:
    return [moment for stage in lived.values() for moment in stage.saves if moment.kind == kind]


def _notes(lived: Mapping[str, Lived]) -> Iterator[Moment]:
    return (Moment(name, "note", entry.place) for name, stage in lived.items() for entry in stage.stream)


def _edges(lived: Mapping[str, Lived]) -> list[Moment]:
    """The first entry of every step but a stage's first."""
    return [
        Moment(name, "note", entry.place)
        for name, stage in lived.items()
        for before, entry in zip(stage.stream, stage.stream[1:], strict=False)
        if entry.step != before.step
    ]
