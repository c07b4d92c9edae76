"""From logits to the next token: temperature, top-k, top-p, and one uniform a row.

Draws by inverting the cumulative distribution, so a row needs one random number and not one a vocabulary
entry. Where the numbers come from is `noise`'s business; the loop around it is the sampler's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.lm.sampler import SamplingParams

_BLOCK = 128
_FLAT = 2048
"""Vocabularies up to here are summed in one go; larger ones block by block, then within the chosen block."""


def draw(logits: Tensor, uniform: Tensor | None, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The next token of every row and its log-probability.

    logits [R, V] float32; uniform [R] float64 in [0, 1), unused at temperature 0. Returns ids [R] and logps
    [R]: those of the model's own distribution (temperature 1, nothing filtered), which is what a
    policy-gradient ratio needs.
    """
    top = logits.amax(-1, keepdim=True)
    weights = torch.exp(logits - top)
    log_norm = weights.sum(-1).log()
    if params.temperature == 0.0:
        ids = logits.argmax(-1)
    else:
        if uniform is None:
            raise ValueError("sampling at a temperature above 0 needs noise")
        if params.temperature != 1.0:
            weights = torch.exp((logits - top) / params.temperature)
        if params.top_k is not None or params.top_p is not None:
            weights = _filtered(weights, params.top_k, params.top_p)
        ids = _invert(weights, uniform)
    chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return ids, chosen - top.squeeze(-1) - log_norm


def _filtered(weights: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Weights with everything outside the k largest, or outside the smallest set that holds mass p, set to zero."""
    if top_k is not None and top_k < weights.shape[-1]:
        smallest = weights.topk(top_k, dim=-1).values[:, -1:]
        weights = weights.masked_fill(weights < smallest, 0.0)
    if top_p is not None and top_p < 1.0:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1, dtype=torch.float64) - ordered
        ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True, dtype=torch.float64), 0.0)
        weights = torch.zeros_like(weights).scatter_(-1, order, ordered)
    return weights


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """The index at which each row's running sum of weights first exceeds uniform · total."""
    vocabulary = weights.shape[-1]
    if vocabulary <= _FLAT:
        return _first_beyond(weights, uniform)[0]
    if vocabulary % _BLOCK:
        weights = F.pad(weights, (0, _BLOCK - vocabulary % _BLOCK))
    blocks = weights.view(weights.shape[0], -1, _BLOCK)
    block, inside = _first_beyond(blocks.sum(-1), uniform)
    rows = torch.arange(weights.shape[0], device=weights.device)
    return block * _BLOCK + _first_beyond(blocks[rows, block], inside)[0]


def _first_beyond(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum passes uniform · total, and how far into that entry it does (again in [0, 1))."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    target = uniform * sums[:, -1]
    index = torch.searchsorted(sums, target.unsqueeze(-1), right=True).clamp_(max=weights.shape[-1] - 1)
    reached = sums.gather(-1, index).squeeze(-1)
    index = index.squeeze(-1)
    weight = weights.gather(-1, index.unsqueeze(-1)).squeeze(-1).double()
    inside = 1.0 - (reached - target) / weight
    return index, inside.clamp_(0.0, 1.0 - 2.0**-53)
