"""From rewards to returns and advantages along one axis of time. Whitening and masking losses is left to the caller."""

from __future__ import annotations

import torch
from torch import Tensor


def final_rewards(scores: Tensor, lengths: Tensor, steps: int) -> Tensor:
    """Rewards [B, steps] that are 0 everywhere but at each row's last real step, which receives its score.

    scores [B]; lengths [B], at least 1.
    """
    rewards = scores.new_zeros(len(scores), steps)
    return rewards.scatter(1, (lengths - 1).unsqueeze(1), scores.unsqueeze(1))


def returns(rewards: Tensor, continues: Tensor, bootstrap: Tensor, *, gamma: float) -> Tensor:
    """Discounted returns.      G_t = r_t + γ c_t G_{t+1},   G_T = bootstrap

    rewards [B, T]; continues c [B, T], 0 where the episode ended; bootstrap [B].
    """
    out, carry = torch.empty_like(rewards), bootstrap
    for t in reversed(range(rewards.shape[1])):
        carry = rewards[:, t] + gamma * continues[:, t] * carry
        out[:, t] = carry
    return out


def gae(rewards: Tensor, values: Tensor, continues: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al., 2016).

        δ_t = r_t + γ c_t V_{t+1} − V_t          A_t = δ_t + γ λ c_t A_{t+1},   A_T = 0

    rewards [B, T]; values [B, T+1], V_t being the value *before* action t, whose last column bootstraps a cut
    trajectory; continues c [B, T], 0 where the episode ended. Returns A [B, T], not normalised.
    """
    deltas = rewards + gamma * continues * values[:, 1:] - values[:, :-1]
    advantages, carry = torch.empty_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        carry = deltas[:, t] + gamma * lam * continues[:, t] * carry
        advantages[:, t] = carry
    return advantages
