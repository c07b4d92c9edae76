"""Supervised learning of texts: examples as token ids, and the cross-entropy of what the model is to write itself.

Where examples come from, and in which order they are learnt, is for the callers to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import DataError
from engine.lm import chat, lean
from engine.lm.encode import encode
from engine.lm.learner import LossOutput
from engine.lm.logprobs import token_logps
from engine.lm.packing import Pack, pack
from engine.lm.policy import Policy
from engine.lm.shares import HERE, Across, Part, everywhere
from engine.lm.transfer import moved


@dataclass(frozen=True)
class Example:
    """One conversation as token ids: what is given, what follows, and which of the latter the model says itself."""

    prompt: list[int]
    rest: list[int]
    own: list[bool]

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.rest)

    @property
    def said(self) -> list[int]:
        """What follows the prompt, up to the last token that is learnt."""
        return self.rest[: len(self.own) - self.own[::-1].index(True)]


def of_conversation(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], *, everything: bool = False, longest: int | None = None
) -> Example | None:
    """A written conversation as it is learnt: the assistant's words and the end of its turns, or `everything`.

    Pieces are encoded one by one, as a sampler gives a prompt first and adds to it. What is over `longest` tokens is
    cut off; None where nothing to learn is left. Raises DataError where the assistant says nothing.
    """
    prompt: list[int] = []
    rest: list[int] = []
    own: list[bool] = []
    pieces = chat.written(tokenizer, messages)
    if not any(mine for _, mine in pieces):
        raise DataError("the assistant says nothing in this conversation: there is nothing to learn")
    for number, (text, mine) in enumerate(pieces):
        ids = chat.encode(tokenizer, text)
        if not mine and not rest and not everything:
            prompt += ids
            continue
        said = _turn(tokenizer, ids, last=number == len(pieces) - 1) if mine else [everything] * len(ids)
        rest += [*ids, *([tokenizer.eos_token_id] if len(said) > len(ids) else [])]
        own += said
    if everything:
        prompt, rest, own = rest[:1], rest[1:], [True] * (len(rest) - 1)
    room = len(rest) if longest is None else max(0, longest - len(prompt))
    return Example(prompt, rest[:room], own[:room]) if any(own[:room]) else None


def _turn(tokenizer: Any, ids: Sequence[int], *, last: bool) -> list[bool]:
    """Which tokens of an utterance are learnt: up to the special one that ends the turn, not the space after it.

    One more than there are tokens where the template ends no turn: the end of the sequence is then said after the last.
    """
    ends = [place for place, token in enumerate(ids) if token in tokenizer.all_special_ids]
    if ends:
        return [place <= ends[-1] for place in range(len(ids))]
    return [True] * (len(ids) + (last and tokenizer.eos_token_id is not None))


def quick_order(policy: Policy, examples: Sequence[Example]) -> list[int]:
    """Indices of the examples, in an order in which neighbours are quick to compute at once.

    Beginnings in common are computed once where the model can do that, so these are neighbours; elsewhere rows are
    padded, and neighbours are of one length.
    """
    shares = lean.supports(policy.model)
    return sorted(range(len(examples)), key=lambda i: examples[i].prompt if shares else examples[i].length)


def mean_logps(policy: Policy, examples: Sequence[Example], most_tokens: int, across: Across = HERE) -> list[float]:
    """For each example the mean log-probability of its learnt tokens, in nats. Without gradients."""

    def means(part: Part) -> torch.Tensor:
        batch = collate([examples[index] for index in part])
        return torch.stack([each.mean() for each in torch.split(_logps(policy, batch), list(batch.counts))])

    lengths = [example.length for example in examples]
    found: list[float] = everywhere(means, quick_order(policy, examples), lengths, most_tokens, across).tolist()
    return found


@dataclass(frozen=True)
class Batch:
    """Examples as they are computed at once, T learnt tokens in all."""

    packed: Pack
    before: Tensor
    """[T] where each learnt token is predicted: into the hidden states of `packed`."""
    targets: Tensor
    """[T] the learnt tokens, example after example."""
    counts: tuple[int, ...]
    """How many each example has."""


def collate(examples: Sequence[Example]) -> Batch:
    """The examples as one batch, in main memory."""
    packed = pack([e.prompt for e in examples], [[e.rest] for e in examples], want=("before",))
    own = torch.tensor([flag for e in examples for flag in e.own])
    return Batch(packed, packed.before[own], packed.targets[own], tuple(sum(example.own) for example in examples))


def batch_loss(policy: Policy, batch: Batch) -> LossOutput:
    """Cross-entropy of the tokens that are the model's own, summed."""
    logps = _logps(policy, batch)
    return LossOutput(-logps.sum(), float(len(logps)))


def completion_loss(policy: Policy, examples: Sequence[Example]) -> LossOutput:
    """The same of examples."""
    return batch_loss(policy, collate(examples))


def _logps(policy: Policy, batch: Batch) -> Tensor:
    """Log-probs [T] of every learnt token."""
    batch = moved(batch, policy.device)
    return token_logps(policy.model, encode(policy.model, batch.packed)[batch.before], batch.targets)
