"""From logits to the next token: temperature, top-k, top-p, and exponential noise.

A race: entry i arrives at time Eᵢ / pᵢ, and the first one is drawn, with probability pᵢ / Σp. Where the noise
comes from is `noise`'s business; the loop around it is the sampler's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.lm.sampler import SamplingParams

_BLOCK = 128


def draw(logits: Tensor, noise: Tensor | None, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The next token of every row and its log-probability.

    logits [R, V] float32; noise [R, V], standard exponentials, unused at temperature 0. Returns ids [R] and
    logps [R]: those of the model's own distribution (temperature 1, nothing filtered), which is what a
    policy-gradient ratio needs.
    """
    probs = torch.softmax(logits, dim=-1)
    if params.temperature == 0.0:
        ids = logits.argmax(-1)
    elif noise is None:
        raise ValueError("sampling at a temperature above 0 needs noise")
    else:
        weights = probs if params.temperature == 1.0 else torch.softmax(logits / params.temperature, dim=-1)
        if params.top_k is not None or params.top_p is not None:
            weights = _filtered(weights, params.top_k, params.top_p)
        ids = _first_maximum(weights / noise)
    return ids, probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1).log()


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


def _first_maximum(scores: Tensor) -> Tensor:
    """argmax of each row [R, V]; for wide rows by way of block maxima, which is many times faster on a CPU."""
    rows, vocabulary = scores.shape
    if scores.device.type != "cpu" or vocabulary < 16 * _BLOCK:
        return scores.argmax(-1)
    whole = vocabulary - vocabulary % _BLOCK
    blocks = scores[:, :whole].view(rows, -1, _BLOCK)
    tops = blocks.amax(-1)
    if whole < vocabulary:
        tops = torch.cat([tops, scores[:, whole:].amax(-1, keepdim=True)], dim=-1)
    best = tops.argmax(-1)
    start = (best * _BLOCK).clamp_(max=vocabulary - _BLOCK)
    inside = scores.gather(-1, start.unsqueeze(-1) + torch.arange(_BLOCK)).argmax(-1)
    return start + inside
