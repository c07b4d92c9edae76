"""The forward passes of sampling: prefill prompts once, then one token a row and step, over a KV cache.

`CachedDecoder` drives any causal model of `transformers` through its own forward and DynamicCache;
`lean.LeanDecoder` does the same for Llama-like models with far less work around the matrix products.
`decoder_for` says which one a model gets. Drawing tokens and deciding when to stop are the sampler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.lm import lean
from engine.lm.lean_decoder import LeanDecoder

COPY_LIMIT = 2 << 30
"""Bytes of weights up to which a second, fused copy is made."""


class Decoder(Protocol):
    """A model over a batch of growing rows. Used under `torch.inference_mode`, model in eval mode."""

    def start(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], room: int) -> Tensor:
        """Begin: distinct prompts, for each row the index of its prompt, room for so many more tokens a row.

        Returns logits [rows, V] of the next token, float32.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each row; returns logits [rows, V]."""

    def keep(self, index: Tensor) -> None:
        """Drop all rows but these."""

    def finish(self, completions: Sequence[Sequence[int]]) -> None:
        """Hear what the rows of the last `start` became, to recognise contexts that extend them."""

    def refresh(self) -> None:
        """Forget every cached activation and copied weight."""


def decoder_for(model: nn.Module) -> Decoder:
    """The lean decoder where it is exact and its weight copies are small, else the model's own forward.

    Exact: `lean.supports` the architecture, and the weights are float32 (in half precision, adding a LoRA
    update to a copy of its base would round it away).
    """
    weights = list(model.parameters())
    small = sum(weight.numel() * weight.element_size() for weight in weights) <= COPY_LIMIT
    full = all(weight.dtype == torch.float32 for weight in weights)
    return LeanDecoder(model) if small and full and lean.supports(model) else CachedDecoder(model)


class CachedDecoder:
    """Any causal model: its own forward, left-padded prompts, a DynamicCache repeated for the rows of a prompt."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._lengths = torch.empty(0)

    def start(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], room: int) -> Tensor:
        from transformers import DynamicCache

        device = next(self._model.parameters()).device
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        self._cache = DynamicCache(config=self._model.config)
        positions = (mask.cumsum(-1) - 1).clamp_(min=0)
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        index = torch.tensor(rows, device=device)
        self._cache.batch_select_indices(index)
        self._mask, self._lengths = mask[index], mask.sum(-1)[index]
        logits: Tensor = out.logits[:, -1].float()[index]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, torch.ones_like(self._mask[:, :1])], dim=-1)
        out = self._model(
            input_ids=tokens.unsqueeze(-1),
            attention_mask=self._mask,
            position_ids=self._lengths.unsqueeze(-1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._lengths = self._lengths + 1
        logits: Tensor = out.logits[:, -1].float()
        return logits

    def keep(self, index: Tensor) -> None:
        self._cache.batch_select_indices(index)
        self._mask, self._lengths = self._mask[index], self._lengths[index]

    def finish(self, completions: Sequence[Sequence[int]]) -> None:
        self._cache = None

    def refresh(self) -> None:
        self._cache = None
