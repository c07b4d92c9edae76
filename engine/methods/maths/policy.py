"""Losses that move a policy, per entry: the reduction over tokens or utterances is the caller's."""

from __future__ import annotations

import torch
from torch import Tensor


def importance_ratio(logps: Tensor, behaviour: Tensor) -> Tensor:
    """ρ = π(x|s) / π_old(x|s), from log-probabilities of the same tokens."""
    return (logps - behaviour).exp()


def clipped_loss(ratio: Tensor, advantages: Tensor, *, clip: float) -> Tensor:
    """PPO's loss (Schulman et al., 2017).     −min(ρ A, clip(ρ, 1−ε, 1+ε) A)"""
    return -torch.minimum(ratio * advantages, ratio.clamp(1.0 - clip, 1.0 + clip) * advantages)


def reinforce_loss(logps: Tensor, advantages: Tensor) -> Tensor:
    """The score function's loss (Williams, 1992).     −A log π(x|s), with A held constant"""
    return -advantages.detach() * logps


def awr_weight(advantages: Tensor, *, beta: float, limit: float = 20.0) -> Tensor:
    """Weights of advantage-weighted regression (Peng et al., 2019).     exp(β A), at most `limit`"""
    return (beta * advantages).exp().clamp(max=limit)
