"""Where two streams of fingerprints part: the first entry that is not the same in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from engine.store.fingerprints import Fingerprint, Layer


@dataclass(frozen=True)
class Parting:
    """The first difference of two streams."""

    step: int
    layer: Layer
    expected: Fingerprint | None
    """In the first stream; None where it had ended."""
    found: Fingerprint | None
    """In the second stream; None where it had ended."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.layer}"


def parting(expected: Sequence[Fingerprint], found: Sequence[Fingerprint]) -> Parting | None:
    """The first entry that differs in step, layer or value; None where the streams are the same."""
    for one, other in zip_longest(expected, found):
        if one != other:
            named = other if one is None else one
            return Parting(named.step, named.layer, one, other)
    return None
