"""What a spec may say about supervised fine-tuning. Examples are `examples`', their loss is `lm.supervised`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from engine.methods.dialogue.config import Episodes
from engine.methods.supervised.config import Training
from engine.spec.dataset import Dataset
from engine.spec.text import TextSource

DRAWN = 2000
"""Texts of a template or of utterances, where a spec does not say how many."""


class Data(TextSource):
    """Text to learn in place of the dataset's answers: what the assistant says to prompts of the training items."""

    block: ClassVar[str] = "algorithm.data"
    purpose: ClassVar[str] = "data"
    examples: int | None = Field(None, ge=1)
    """Texts drawn; empty: every answer of a file once, or 2000 of anything else."""


def _absent(value: Any) -> bool:
    return value is None


class SFT(Training):
    """Supervised fine-tuning: the cross-entropy of the assistant's words in written conversations.

    An item is a conversation (`messages`), or a `prompt` with the `answer` to it; with `data` items only evaluate.
    Iterations are optimiser steps.
    """

    takes_messages: ClassVar[bool] = True
    name: Literal["sft"] = "sft"
    # Left out of a spec's resolved form where it is empty: keys of caches that know no `data` stay as they were.
    data: Data | None = Field(None, exclude_if=_absent)
    """Text to learn, in place of the items' answers; empty: the items are learnt."""
    learn: Literal["completions", "everything"] = "completions"
    """What is learnt: the assistant's words and the ends of its turns, or every token."""
    episodes: Episodes = Episodes()
    """How the trained model is scored where the dataset has a `score_fn`: by what it says to each prompt."""

    def refuses(self, dataset: Dataset) -> Iterator[tuple[str, str]]:
        """What cannot be learnt from, or be scored."""
        yield from super().refuses(dataset)
        if self.data is not None and self.data.utterances is not None and dataset.reply_fn is None:
            yield "algorithm.data.utterances", "utterances are answered by the dataset's reply_fn, and there is none"
        for place, item in dataset.inline_items():
            if item.messages is None and not isinstance(item.answer, str) and self.data is None:
                yield (
                    place,
                    (
                        "sft learns to say the answer to a prompt: it has to be text. "
                        "Or say with `algorithm.data` what is learnt in place of answers"
                    ),
                )
            if item.messages is not None and dataset.scores:
                yield place, "score_fn scores what the model says to a `prompt`; a conversation has none"
            if item.messages is not None and all(message.role != "assistant" for message in item.messages):
                yield place, "the assistant says nothing in this conversation: there is nothing to learn"
