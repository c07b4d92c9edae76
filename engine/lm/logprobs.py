"""Log-probabilities, entropies and divergences of given tokens, from hidden states that were gathered first.

Only the positions that predict a token meet the output layer, so logits are [tokens, V] and never
[batch, length, V]. Hidden states come from `encode`; what becomes of the numbers is the losses' business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.lm import lean


@dataclass(frozen=True)
class TokenStats:
    """What the policy says about given tokens, each [T]."""

    logps: Tensor
    """log π(x_t | s_t)."""
    entropy: Tensor | None = None
    """H(π(· | s_t)) in nats."""
    kl: Tensor | None = None
    """KL(π(· | s_t) ‖ π_ref(· | s_t)), exact over the vocabulary."""


def output_layer(model: nn.Module) -> nn.Module:
    """The layer from hidden states to logits."""
    head: Any = lean.unwrap(model).get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output layer")
    module: nn.Module = head
    return module


def token_stats(
    model: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    entropy: bool = False,
    reference: tuple[nn.Module, Tensor] | None = None,
) -> TokenStats:
    """Log-probs of `targets` [T] from the hidden states [T, D] that predict them, differentiable.

    `reference` is another model and its hidden states at the same places; its side carries no gradient.
    """
    logps = F.log_softmax(output_layer(model)(hidden).float(), dim=-1)
    chosen = logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if not entropy and reference is None:
        return TokenStats(chosen)
    probs = logps.exp()
    spread = -(probs * logps).sum(-1) if entropy else None
    divergence = None
    if reference is not None:
        with torch.no_grad():
            other = F.log_softmax(output_layer(reference[0])(reference[1]).float(), dim=-1)
        divergence = (probs * (logps - other)).sum(-1)
    return TokenStats(chosen, spread, divergence)


def token_logps(model: nn.Module, hidden: Tensor, targets: Tensor, *, chunk: int = 4096) -> Tensor:
    """Log-probs of `targets` [T] alone; without gradients in chunks of tokens, so any T fits."""
    if torch.is_grad_enabled():
        return token_stats(model, hidden, targets).logps
    return torch.cat(
        [
            token_stats(model, h, t).logps
            for h, t in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        ]
    )
