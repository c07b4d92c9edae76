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
    if params.temperature > 0 and uniform is None:
        raise ValueError("sampling at a temperature above 0 needs noise")
    plain = torch.softmax(logits, dim=-1)
    if uniform is None or params.temperature == 0.0:
        ids = logits.argmax(-1)
    else:
        weights = plain if params.temperature == 1.0 else torch.softmax(logits / params.temperature, dim=-1)
        if params.top_k is not None or params.top_p is not None:
            weights = _filtered(weights, params.top_k, params.top_p)
        ids = _invert(weights, uniform)
    return ids, plain.gather(-1, ids.unsqueeze(-1)).squeeze(-1).log()


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
        sums = weights.cumsum(-1, dtype=torch.float64)
        return _first_beyond(sums, uniform * sums[:, -1])
    if vocabulary % _BLOCK:
        weights = F.pad(weights, (0, _BLOCK - vocabulary % _BLOCK))
    blocks = weights.view(weights.shape[0], -1, _BLOCK)
    sums = blocks.sum(-1).cumsum(-1, dtype=torch.float64)
    target = uniform * sums[:, -1]
    block = _first_beyond(sums, target)
    rows = torch.arange(len(weights), device=weights.device)
    inside = blocks[rows, block].cumsum(-1, dtype=torch.float64)
    # A block's sum in float32 differs in its last digits from the running sum inside: what is left is a share of it.
    whole = sums[rows, block]
    before = torch.where(block > 0, sums[rows, block - 1], 0.0)
    share = ((target - before) / (whole - before)).clamp_(max=1.0 - 2.0**-53)
    return block * _BLOCK + _first_beyond(inside, share * inside[:, -1])


def _first_beyond(sums: Tensor, target: Tensor) -> Tensor:
    """[R] the first index of each row of ascending `sums` that is greater than its target."""
    return torch.searchsorted(sums, target.unsqueeze(-1), right=True).squeeze(-1)
