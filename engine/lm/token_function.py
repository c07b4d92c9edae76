"""Log-probs, entropy and KL of tokens from hidden states as one differentiable operation over chunks of tokens.

Autograd would keep half a dozen [T, V] tensors and pass over memory twenty times; a large vocabulary
makes that the cost of a whole update. Here a chunk of logits is computed, used and let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from engine.lm.ops import dot

CHUNK = 1 << 22
"""Logits in work at a time, at most."""
KEEP = 1 << 25
"""Up to so many logits (128 MiB) are kept for the backward pass; beyond, they are computed a second time."""


def token_function(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    reference: Tensor | tuple[Tensor, Tensor] | None,
    entropy: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """log π(x_t), H(π_t) and KL(π_t ‖ q_t), each [T]; see `TokenFunction`."""
    out: tuple[Tensor, Tensor, Tensor] = TokenFunction.apply(hidden, weight, targets, reference, entropy)  # type: ignore[no-untyped-call]
    return out


class TokenFunction(torch.autograd.Function):
    """(log π(x_t), H(π_t), KL(π_t ‖ q_t)) for hidden states h [T, D] and an output weight W [V, D].

    q_t is given by the log-probs `reference` [T, V], or by its own hidden states and weight; None leaves KL at 0.
    With p = π_t, ℓ = log p, r = log q_t, and upstream gradients g₁, g₂, g₃ of the three results,

        ∂/∂logits = g₁ (1[x_t] − p) − g₂ p (ℓ + H) + g₃ p (ℓ − r − KL).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        reference: Tensor | tuple[Tensor, Tensor] | None,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, vocabulary = len(hidden), len(weight)
        logps, spread, divergence, norms = (torch.zeros(count, device=hidden.device) for _ in range(4))
        keep = count * vocabulary <= KEEP and any(ctx.needs_input_grad)
        kept: list[tuple[Tensor, Tensor, _Other | None]] = []
        for part in _parts(count, vocabulary):
            scores, probs, norm = _distribution(hidden[part], weight)
            other = _reference(reference, part)
            norms[part] = norm
            logps[part] = scores.gather(-1, targets[part].unsqueeze(-1)).squeeze(-1) - norm
            if entropy or other is not None:
                spread[part] = norm - dot(probs, scores)
                if other is not None:
                    divergence[part] = other.norm - dot(probs, other.scores) - spread[part]
            if keep:
                kept.append((scores, probs, other))
        ctx.save_for_backward(hidden, weight, targets, spread, divergence, norms)
        ctx.reference, ctx.kept = reference, kept
        # The products of the backward pass are done in what the forward's were.
        kind = hidden.device.type
        ctx.precision = partial(
            torch.autocast, kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )
        return logps, spread, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        with ctx.precision():
            return _gradients(ctx, *grads)


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    """∂/∂(hidden, weight) of the three results, chunk by chunk."""
    hidden, weight, targets, spread, divergence, norms = ctx.saved_tensors
    of_logps, of_entropy, of_kl = grads
    slope = (of_kl - of_entropy).unsqueeze(-1)
    steady = (-of_logps - of_entropy * spread - of_kl * divergence).unsqueeze(-1) - slope * norms.unsqueeze(-1)
    curved = bool(of_entropy.any()) or bool(of_kl.any())
    d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
    d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
    for i, part in enumerate(_parts(len(hidden), len(weight))):
        if ctx.kept:
            scores, probs, other = ctx.kept[i]
        else:
            scores, probs, _ = _distribution(hidden[part], weight)
            other = _reference(ctx.reference, part)
        level = steady[part]
        if curved and other is not None:
            pull = of_kl[part].unsqueeze(-1)
            level = torch.addcmul(level + pull * other.norm.unsqueeze(-1), scores, slope[part])
            d_logits = level.addcmul_(other.scores, pull, value=-1.0).mul_(probs)
        elif curved:
            d_logits = torch.addcmul(level, scores, slope[part]).mul_(probs)
        else:
            d_logits = probs * level
        d_logits.scatter_add_(-1, targets[part].unsqueeze(-1), of_logps[part].unsqueeze(-1))
        d_logits = d_logits.to(weight.dtype)
        if d_hidden is not None:
            d_hidden[part] = (d_logits @ weight).to(hidden.dtype)
        if d_weight is None:
            continue
        if torch.is_autocast_enabled(weight.device.type):  # which leaves products in place as they are
            d_weight += d_logits.t() @ hidden[part]
        else:
            d_weight.addmm_(d_logits.t(), hidden[part].to(weight.dtype))
    return d_hidden, d_weight, None, None, None


@dataclass(frozen=True)
class _Other:
    """The reference on one chunk: log q = scores − norm."""

    scores: Tensor
    norm: Tensor


def _parts(count: int, vocabulary: int) -> Iterator[slice]:
    size = max(1, CHUNK // vocabulary)
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _distribution(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and probabilities [c, V], and the log of the normaliser [c], exponentiated once."""
    scores = F.linear(hidden.to(weight.dtype), weight).float()
    probs = torch.softmax(scores, dim=-1)
    return scores, probs, scores.amax(-1) - probs.amax(-1).log()


def _reference(reference: Tensor | tuple[Tensor, Tensor] | None, part: slice) -> _Other | None:
    if reference is None:
        return None
    if isinstance(reference, Tensor):
        return _Other(reference[part], torch.zeros_like(reference[part, 0]))
    scores = F.linear(reference[0][part].to(reference[1].dtype), reference[1]).float()
    return _Other(scores, scores.logsumexp(-1))
