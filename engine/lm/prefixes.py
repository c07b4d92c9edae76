"""Activations of contexts seen before, for contexts that extend them.

Holds what one sampling call computed: every prompt, and behind it every completion. The next call's
prompts usually are one of those with a little more at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from engine.lm.packing import common


@dataclass(frozen=True)
class Prefix:
    """The first `length` tokens of a context: pieces [layers, 2, Hkv, tokens, d] of keys and values, end to end."""

    length: int = 0
    pieces: tuple[Tensor, ...] = ()

    def fill(self, place: Tensor) -> None:
        """Copy the first tokens into `place` [layers, 2, Hkv, n ≤ length, d], as many as it has room for."""
        start, room = 0, place.shape[3]
        for piece in self.pieces:
            take = min(room - start, piece.shape[3])
            place[:, :, :, start : start + take] = piece[:, :, :, :take]
            start += take


@dataclass(frozen=True)
class _Context:
    prompt: list[int]
    front: Tensor
    continued: list[tuple[list[int], Tensor]]
    """Completions as far as they were fed to the model, with their activations."""


class PrefixMemory:
    """The contexts of the last call."""

    def __init__(self) -> None:
        self._contexts: list[_Context] = []

    def forget(self) -> None:
        self._contexts = []

    def remember(self, prompts: Sequence[Sequence[int]], fronts: Sequence[Tensor]) -> None:
        """Replace what is remembered by these prompts, to which `extend` adds."""
        self._contexts = [_Context(list(prompt), front, []) for prompt, front in zip(prompts, fronts, strict=True)]

    def extend(self, prompt: int, completion: Sequence[int], behind: Tensor) -> None:
        """Add a completion of a remembered prompt, as far as `behind` reaches."""
        self._contexts[prompt].continued.append((list(completion[: behind.shape[3]]), behind))

    def longest(self, prompt: Sequence[int]) -> Prefix:
        """The longest beginning of `prompt` that is remembered."""
        tokens, best = list(prompt), Prefix()
        for context in self._contexts:
            shared = common(context.prompt, tokens)
            if shared > best.length:
                best = Prefix(shared, (context.front,))
            if shared == len(context.prompt):
                rest = tokens[shared:]
                for completion, behind in context.continued:
                    reach = shared + common(completion, rest)
                    if reach > best.length:
                        best = Prefix(reach, (context.front, behind))
        return best
