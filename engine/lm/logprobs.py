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
from engine.lm.token_function import token_function


@dataclass(frozen=True)
class TokenStats:
    """What the policy says about given tokens, each [T]."""

    logps: Tensor
    """log π(x_t | s_t)."""
    entropy: Tensor | None = None
    """H(π(· | s_t)) in nats."""
    kl: Tensor | None = None
    """KL(π(· | s_t) ‖ π_ref(· | s_t)), exact over the vocabulary."""


Reference = tuple[nn.Module, Tensor] | Tensor
"""Another model with its hidden states at the same places [T, D], or its log-probs [T, V] (`distributions`)."""


def output_layer(model: nn.Module) -> nn.Module:
    """The layer from hidden states to logits."""
    head: Any = lean.unwrap(model).get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output layer")
    module: nn.Module = head
    return module


def logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """[T, V] float32, as the model's own forward makes them of its hidden states."""
    config = lean.unwrap(model).config
    out: Tensor = output_layer(model)(hidden).float()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        out = out * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite
        out = out / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        out = torch.tanh(out / cap) * cap
    return out


def distributions(model: nn.Module, hidden: Tensor) -> Tensor:
    """Whole log-distributions [T, V]: worth keeping for a frozen reference that is asked many times."""
    return F.log_softmax(logits(model, hidden), dim=-1)


def token_stats(
    model: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    entropy: bool = False,
    reference: Reference | None = None,
) -> TokenStats:
    """Log-probs of `targets` [T] from the hidden states [T, D] that predict them, differentiable.

    The reference's side carries no gradient.
    """
    weight = _plain_weight(model)
    if weight is None:
        return _by_autograd(model, hidden, targets, entropy=entropy, reference=reference)
    logps, spread, divergence = token_function(hidden, weight, targets, _frozen(reference), entropy)
    return TokenStats(logps, spread if entropy else None, divergence if reference is not None else None)


def token_logps(model: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probs of `targets` [T] alone."""
    return token_stats(model, hidden, targets).logps


@torch.no_grad()
def _frozen(reference: Reference | None) -> Tensor | tuple[Tensor, Tensor] | None:
    """The reference as `token_function` takes it: log-probs, or hidden states and an output weight."""
    if reference is None or isinstance(reference, Tensor):
        return reference
    weight = _plain_weight(reference[0])
    return distributions(*reference) if weight is None else (reference[1], weight.detach())


def _plain_weight(model: nn.Module) -> Tensor | None:
    """The output layer's weight where logits are nothing but a product with it."""
    head, config = output_layer(model), lean.unwrap(model).config
    changed = any(getattr(config, key, None) for key in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    if type(head) is not nn.Linear or changed or head._parameters["bias"] is not None:
        return None
    weight: Tensor = head.weight
    return weight


def _by_autograd(
    model: nn.Module, hidden: Tensor, targets: Tensor, *, entropy: bool, reference: Reference | None
) -> TokenStats:
    """The same for output layers that are more than one product."""
    logps = distributions(model, hidden)
    chosen = logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    spread = divergence = None
    if entropy:
        spread = -(logps.exp() * logps).sum(-1)
    if reference is not None:
        with torch.no_grad():
            other = reference if isinstance(reference, Tensor) else distributions(*reference)
        divergence = (logps.exp() * (logps - other)).sum(-1)
    return TokenStats(chosen, spread, divergence)
