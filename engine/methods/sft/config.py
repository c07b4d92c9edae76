"""What a spec may say about supervised fine-tuning. Examples and their loss are `lm.supervised`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from engine.methods.dialogue.config import Episodes
from engine.spec.base import SpecModel
from engine.spec.dataset import Dataset, Item


class SFT(SpecModel):
    """Supervised fine-tuning: the cross-entropy of the assistant's words in written conversations.

    An item is a conversation (`messages`), or a `prompt` with the `answer` to it. Iterations are optimiser steps.
    """

    takes_messages: ClassVar[bool] = True
    name: Literal["sft"] = "sft"
    epochs: int = Field(3, ge=1)
    """Times that every conversation is learnt."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps, in place of `epochs`; empty: as many as the epochs have."""
    learn: Literal["completions", "everything"] = "completions"
    """What is learnt: the assistant's words and the ends of its turns, or every token."""
    batch_size: int = Field(16, ge=1)
    """Conversations in an optimiser step."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens that are computed at once, at most: a step of more takes several parts, with the same result."""
    max_tokens: int = Field(1024, ge=2)
    """Longest conversation; what is over is cut off."""
    lr: float = Field(1e-4, gt=0)
    """AdamW's peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls to 0 by the last step."""
    warmup: float = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises to `lr`."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled, as in AdamW."""
    grad_clip: float | None = Field(1.0, gt=0)
    """Largest gradient norm; empty: unbounded."""
    best_by: str | None = None
    """The split by whose log-probability the best checkpoint is chosen; empty: the last one is the best."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; evaluations make one too."""
    episodes: Episodes = Episodes()
    """How the trained model is scored where the dataset has a `score_fn`: by what it says to each prompt."""

    def refuses(self, dataset: Dataset) -> Iterator[tuple[str, str]]:
        """What cannot be learnt from, or be scored."""
        if self.best_by is not None and self.best_by not in dataset.split_names:
            names = ", ".join(dataset.split_names)
            yield "algorithm.best_by", f"the dataset has no split called {self.best_by!r}. There are {names}"
        for place, item in _inline(dataset):
            if item.messages is None and not isinstance(item.answer, str):
                yield place, "sft learns to say the answer to a prompt: it has to be text"
            if item.messages is not None and dataset.score_fn is not None:
                yield place, "score_fn scores what the model says to a `prompt`; a conversation has none"
            if item.messages is not None and all(message.role != "assistant" for message in item.messages):
                yield place, "the assistant says nothing in this conversation: there is nothing to learn"


def _inline(dataset: Dataset) -> Iterator[tuple[str, Item]]:
    """Every item that is written out, with its place in the spec."""
    for name, items in (
        ("dataset.items", dataset.items),
        *((f"dataset.splits.{n}", i) for n, i in dataset.splits.items()),
    ):
        if isinstance(items, tuple):
            yield from ((f"{name}.{number}", item) for number, item in enumerate(items))
