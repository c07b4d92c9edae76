"""`transformers.generate` as a sampler's peer: a batch of prompts that begin alike, ended by the same tokens.

Two ways that its documentation describes: every row reads its whole prompt (the default), and the shared beginning
is read once into a cache that every row starts from.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

from engine.lm.noise import NoiseKey, exponentials, words

Rows = list[list[int]]


@dataclass(frozen=True)
class Task:
    """What both sides complete: prompts [P] of equal length, each `n` times, ended by one of `eos` or after `new`."""

    prompts: Rows
    shared: int
    """How many tokens all prompts have in common at their beginning."""
    n: int
    new: int
    eos: tuple[int, ...]
    keys: tuple[NoiseKey, ...]


class _Raced(LogitsProcessor):
    """Makes the likeliest token the one that our noise draws, so that both sides can be compared token by token."""

    def __init__(self, task: Task, vocabulary: int) -> None:
        self._bits, self._prompt = words(list(task.keys), task.n, task.new), len(task.prompts[0])
        self._vocabulary = vocabulary

    def __call__(self, input_ids: Any, scores: Any) -> Tensor:
        noise = exponentials(self._bits[input_ids.shape[1] - self._prompt], self._vocabulary)
        return torch.softmax(scores.float(), -1) / noise


def generate(model: Any, task: Task, *, prefilled: bool, same_noise: bool = False) -> Rows:
    """The completions, prompt by prompt; drawn by `generate` itself, or with our noise where both are compared."""
    ids = torch.tensor(task.prompts).repeat_interleave(task.n, 0)
    how: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    if same_noise:
        how = {"do_sample": False, "logits_processor": LogitsProcessorList([_Raced(task, model.config.vocab_size)])}
    if prefilled:
        how["past_key_values"] = _beginning(model, task, len(ids))
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=task.new,
            eos_token_id=list(task.eos),
            pad_token_id=task.eos[0],
            **how,
        )
    return [cut(row, task.eos) for row in out[:, ids.shape[1] :].tolist()]


def _beginning(model: Any, task: Task, rows: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.tensor([task.prompts[0][: task.shared]]), past_key_values=cache, use_cache=True)
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache


def cut(row: Sequence[int], eos: Sequence[int]) -> list[int]:
    """A row up to its first end, which belongs to it; what follows only pads."""
    ends, said = set(eos), []
    for token in row:
        said.append(token)
        if token in ends:
            break
    return said
