"""A dataset's splits as examples for supervised learning: which conversation each item is, in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.data.splits import split_items
from engine.errors import DataError
from engine.lm import chat
from engine.lm.supervised import Example, of_conversation
from engine.spec.dataset import Item

Messages = Sequence[Mapping[str, str]]


def conversations(dataset: Mapping[str, Any]) -> dict[str, list[Messages]]:
    """Every split's items as messages, `train` first. Raises DataError naming the split and the item."""
    found: dict[str, list[Messages]] = {}
    for split, items in split_items(dataset).items():
        found[split] = [_messages(item, dataset, f"{split}:{number}") for number, item in enumerate(items, 1)]
    return found


def examples(
    tokenizer: Any, written: Sequence[Messages], *, everything: bool, longest: int, split: str
) -> list[Example | None]:
    """The conversations in tokens; None for one of which nothing to learn is left. Raises DataError."""
    found = []
    for number, messages in enumerate(written, 1):
        try:
            found.append(of_conversation(tokenizer, messages, everything=everything, longest=longest))
        except DataError as error:
            raise DataError(f"{split}:{number}: {error}") from error
    return found


def _messages(item: Item, dataset: Mapping[str, Any], place: str) -> Messages:
    if item.messages is not None:
        return [{"role": message.role, "content": message.content} for message in item.messages]
    if not isinstance(item.answer, str):
        raise DataError(f"{place}: sft learns to say the answer to a prompt, and {item.answer!r:.60} is not text")
    main = dataset["main_prompt"]
    user = f"{main}\n{item.prompt}" if main else item.prompt
    return [*chat.messages_of(dataset["system_prompt"], user), {"role": "assistant", "content": item.answer}]
