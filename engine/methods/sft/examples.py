"""What SFT learns from, and is evaluated on: which conversation each item or text is, in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.data.splits import split_items
from engine.errors import DataError
from engine.lm import chat, scratch, warmup_text
from engine.lm.supervised import Example, of_conversation
from engine.lm.warmup_text import Conversation
from engine.methods.dialogue.prepare import training_tasks
from engine.methods.sft.config import DRAWN, Data
from engine.runtime.context import StageContext
from engine.runtime.seeds import derive
from engine.spec.dataset import Item

Messages = Sequence[Mapping[str, str]]


def conversations(dataset: Mapping[str, Any]) -> dict[str, list[Messages]]:
    """Every split's items as messages, `train` first. Raises DataError naming the split and the item."""
    found: dict[str, list[Messages]] = {}
    for split, items in split_items(dataset).items():
        found[split] = [_messages(item, dataset, f"{split}:{number}") for number, item in enumerate(items, 1)]
    return found


def answered(dataset: Mapping[str, Any]) -> dict[str, list[Messages | None]]:
    """The same where items only evaluate: None for one without a text, and no split without others."""
    found: dict[str, list[Messages | None]] = {}
    for split, items in split_items(dataset).items():
        written = [_messages(item, dataset, split) if _says(item) else None for item in items]
        if any(messages is not None for messages in written):
            found[split] = written
    return found


def written_texts(ctx: StageContext, data: Data) -> list[Messages]:
    """The text that the spec declares as conversations, the same in every stage of a run."""
    dataset = ctx.config["dataset"]
    draft = scratch.train_tokenizer([], 0)  # knows the chat template, which is all that rendering needs
    tasks, system = training_tasks(dataset), dataset["system_prompt"]
    drawn = warmup_text.conversations(
        data,
        tasks,
        examples=data.examples if data.examples is not None or data.file is not None else DRAWN,
        opening={task.user: chat.opening_text(draft, system, task.user) for task in tasks},
        bridge=lambda reply: chat.reply_text(draft, reply),
        functions=ctx.functions if data.utterances is not None else None,
        rng=np.random.default_rng(derive(ctx.seed, "sft", "data")),
    )
    return [_spoken(conversation, system) for conversation in drawn]


def examples(
    tokenizer: Any, written: Sequence[Messages | None], *, everything: bool, longest: int, split: str
) -> list[Example | None]:
    """The conversations in tokens; None for one of which nothing to learn is left. Raises DataError."""
    found: list[Example | None] = []
    for number, messages in enumerate(written, 1):
        if messages is None:
            found.append(None)
            continue
        try:
            found.append(of_conversation(tokenizer, messages, everything=everything, longest=longest))
        except DataError as error:
            raise DataError(f"{split}:{number}: {error}") from error
    return found


def _spoken(conversation: Conversation, system: str) -> Messages:
    messages = chat.messages_of(system, conversation.user)
    for turn in conversation.turns:
        messages.append({"role": "assistant", "content": turn.said})
        if turn.reply is not None:
            messages.append({"role": "user", "content": turn.reply})
    return messages


def _says(item: Item) -> bool:
    if item.messages is None:
        return isinstance(item.answer, str)
    return any(message.role == "assistant" for message in item.messages)


def _messages(item: Item, dataset: Mapping[str, Any], place: str) -> Messages:
    if item.messages is not None:
        return [{"role": message.role, "content": message.content} for message in item.messages]
    if not isinstance(item.answer, str):
        raise DataError(f"{place}: sft learns to say the answer to a prompt, and {item.answer!r:.60} is not text")
    main = dataset["main_prompt"]
    user = f"{main}\n{item.prompt}" if main else item.prompt
    return [*chat.messages_of(dataset["system_prompt"], user), {"role": "assistant", "content": item.answer}]
