"""Which examples each rank computes, in which parts: shares of about equal tokens, each cut to what fits at once.

Every rank works out all of them for itself, so nobody has to be told. Shards exchange weights in every pass, so all
ranks make as many: one with fewer parts repeats one that does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.lm.learner import Hollow
from engine.runtime.world import ALONE, World

Part = list[int]
"""Indices of examples that are computed at once."""


class Across(Protocol):
    """What computes something in every rank; a learner does."""

    @property
    def world(self) -> World: ...

    def apply(self, function: Callable[..., Tensor], *args: Any) -> Tensor: ...


class _Here:
    """One rank, and a model that lies in it whole."""

    world: World = ALONE

    def apply(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        return function(*args)


HERE = _Here()


def cut(order: Iterable[int], lengths: Sequence[int], most_tokens: int) -> Iterator[Part]:
    """These indices in order, in parts whose lengths add up to at most so many tokens, or of a single one."""
    part: Part = []
    held = 0
    for index in order:
        if part and held + lengths[index] > most_tokens:
            yield part
            part, held = [], 0
        part.append(index)
        held += lengths[index]
    if part:
        yield part


def shares(order: Sequence[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The indices as one run a rank, of about as many tokens each: neighbours, which may share a beginning, stay so."""
    found: list[list[int]] = [[] for _ in range(ranks)]
    total, before = sum(lengths[index] for index in order), 0
    for index in order:
        middle = before + lengths[index] / 2
        found[min(ranks - 1, int(middle * ranks / total))].append(index)
        before += lengths[index]
    return found


def own_parts(
    order: Sequence[int], lengths: Sequence[int], most_tokens: int, world: World
) -> list[Part | Hollow[Part]]:
    """This rank's parts of the examples in `order`, as many as every other rank's."""
    by_rank = [list(cut(share, lengths, most_tokens)) for share in shares(order, lengths, world.size)]
    mine: list[Part | Hollow[Part]] = list(by_rank[world.rank])
    spare = Hollow([min(order, key=lambda index: lengths[index])])
    return mine + [spare] * (max(map(len, by_rank)) - len(mine))


def everywhere(
    compute: Callable[[Part], Tensor],
    order: Sequence[int],
    lengths: Sequence[int],
    most_tokens: int,
    across: Across = HERE,
) -> Tensor:
    """`compute` of every part, whose rows belong to its examples, put together in the examples' own order.

    Without gradients; every rank gets all of it.
    """
    found: dict[int, Any] = {}
    with torch.no_grad():
        for batch in own_parts(order, lengths, most_tokens, across.world):
            part = batch.batch if isinstance(batch, Hollow) else batch
            rows = across.apply(compute, part).tolist()
            if not isinstance(batch, Hollow):
                found.update(zip(part, rows, strict=True))
    for other in across.world.gather(found):
        found |= other
    return torch.tensor([found[index] for index in range(len(lengths))])
