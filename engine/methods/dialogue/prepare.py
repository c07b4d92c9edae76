"""The stage `model`, with the training items read from wherever the dataset keeps them."""

from __future__ import annotations

from engine.data.splits import split_items
from engine.lm import warmup
from engine.lm.warmup_text import Task
from engine.runtime.context import StageContext
from engine.spec.dataset import TRAIN


def prepare(ctx: StageContext) -> None:
    """Make or resolve the model of the spec (see `engine.lm.warmup`) on the items of the training split."""
    dataset = ctx.config["dataset"]
    main = dataset.get("main_prompt", "")
    tasks = [
        Task(f"{main}\n{item.prompt}" if main else item.prompt, item.answer) for item in split_items(dataset)[TRAIN]
    ]
    warmup.prepare(ctx, tasks)
