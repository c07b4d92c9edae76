"""What a spec may say about supervised fine-tuning. Examples and their loss are `lm.supervised`'s."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from engine.methods.dialogue.config import Episodes
from engine.methods.supervised.config import Training
from engine.spec.dataset import Dataset


class SFT(Training):
    """Supervised fine-tuning: the cross-entropy of the assistant's words in written conversations.

    An item is a conversation (`messages`), or a `prompt` with the `answer` to it. Iterations are optimiser steps.
    """

    takes_messages: ClassVar[bool] = True
    name: Literal["sft"] = "sft"
    learn: Literal["completions", "everything"] = "completions"
    """What is learnt: the assistant's words and the ends of its turns, or every token."""
    episodes: Episodes = Episodes()
    """How the trained model is scored where the dataset has a `score_fn`: by what it says to each prompt."""

    def refuses(self, dataset: Dataset) -> Iterator[tuple[str, str]]:
        """What cannot be learnt from, or be scored."""
        yield from super().refuses(dataset)
        for place, item in dataset.inline_items():
            if item.messages is None and not isinstance(item.answer, str):
                yield place, "sft learns to say the answer to a prompt: it has to be text"
            if item.messages is not None and dataset.scores:
                yield place, "score_fn scores what the model says to a `prompt`; a conversation has none"
            if item.messages is not None and all(message.role != "assistant" for message in item.messages):
                yield place, "the assistant says nothing in this conversation: there is nothing to learn"
