"""A dataset's splits as pairs of answers in tokens, and what a reward model says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.data.splits import split_items
from engine.errors import DataError
from engine.lm import chat
from engine.lm.heads import ScalarHead
from engine.lm.packing import Pack, pack
from engine.lm.shares import HERE, Across, Part, everywhere
from engine.lm.supervised import of_conversation

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Written:
    """One preference as it is written."""

    chosen: Messages
    rejected: Messages
    margin: float | None


@dataclass(frozen=True)
class Pair:
    """One preference in tokens: what both answers follow, and both up to the end of their turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    margin: float

    @property
    def length(self) -> int:
        """Tokens in all, the prompt counted once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def written(dataset: Mapping[str, Any]) -> dict[str, list[Written]]:
    """Every split's items as conversations, `train` first. Raises DataError naming the split and the item."""
    main, system = dataset["main_prompt"], dataset["system_prompt"]
    found: dict[str, list[Written]] = {}
    for split, items in split_items(dataset).items():
        found[split] = []
        for number, item in enumerate(items, 1):
            if item.chosen is None or item.rejected is None:
                raise DataError(f"{split}:{number}: a reward model learns from `chosen` and `rejected` answers")
            opening = chat.messages_of(system, f"{main}\n{item.prompt}" if main else item.prompt)
            chosen, rejected = (
                [*opening, {"role": "assistant", "content": text}] for text in (item.chosen, item.rejected)
            )
            found[split].append(Written(chosen, rejected, item.margin))
    return found


def in_tokens(tokenizer: Any, preferences: Sequence[Written], *, longest: int, margins: bool) -> list[Pair | None]:
    """The preferences in tokens; None for one of which an answer is lost, or both become the same, within `longest`."""
    found: list[Pair | None] = []
    for preference in preferences:
        better = of_conversation(tokenizer, preference.chosen, longest=longest)
        worse = of_conversation(tokenizer, preference.rejected, longest=longest)
        if better is None or worse is None or better.rest == worse.rest:
            found.append(None)
            continue
        margin = (preference.margin or 0.0) if margins else 0.0
        found.append(Pair(better.prompt, better.said, worse.said, margin))
    return found


def quick_order(pairs: Sequence[Pair]) -> list[int]:
    """Indices of the pairs, prompts alike as neighbours, for they are read once."""
    return sorted(range(len(pairs)), key=lambda i: pairs[i].prompt)


@dataclass(frozen=True)
class Batch:
    """Pairs as they are computed at once: both answers read the prompt once."""

    packed: Pack
    margins: Tensor
    """[P]"""


def collate(pairs: Sequence[Pair]) -> Batch:
    """The pairs as one batch, in main memory."""
    packed = pack([p.prompt for p in pairs], [[p.chosen, p.rejected] for p in pairs], want=("last",))
    return Batch(packed, torch.tensor([pair.margin for pair in pairs]))


def rewards(head: ScalarHead, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """What the model says of the chosen and the rejected answers, each [P]."""
    return batch_rewards(head, collate(pairs))


def batch_rewards(head: ScalarHead, batch: Batch) -> tuple[Tensor, Tensor]:
    """The same of a batch."""
    packed = batch.packed.to(next(head.parameters()).device)
    values = head(packed)[packed.last].view(-1, 2)
    return values[:, 0], values[:, 1]


def all_rewards(
    head: ScalarHead, pairs: Sequence[Pair], most_tokens: int, across: Across = HERE
) -> list[tuple[float, float]]:
    """The same of any number of pairs, as numbers. Without gradients."""

    def of_part(part: Part) -> Tensor:
        return torch.stack(rewards(head, [pairs[i] for i in part]), dim=-1)

    lengths = [pair.length for pair in pairs]
    found = everywhere(of_part, quick_order(pairs), lengths, most_tokens, across)
    return [(chosen, rejected) for chosen, rejected in found.tolist()]
