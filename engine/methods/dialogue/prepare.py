"""The stage `model`, with the training items read from wherever the dataset keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.data.splits import split_items
from engine.lm import warmup
from engine.lm.warmup_text import Task
from engine.runtime.context import StageContext
from engine.spec.dataset import TRAIN


def prepare(ctx: StageContext) -> None:
    """Make or resolve the model of the spec (see `engine.lm.warmup`) on the items of the training split."""
    warmup.prepare(ctx, training_tasks(ctx.config["dataset"]))


def training_tasks(dataset: Mapping[str, Any]) -> list[Task]:
    """The training items that begin with a prompt."""
    main = dataset.get("main_prompt", "")
    return [
        Task(f"{main}\n{item.prompt}" if main else item.prompt, item.answer)
        for item in split_items(dataset)[TRAIN]
        if item.messages is None
    ]
