"""What a critic over utterances regresses on: double-DQN and state-value targets, expectiles, twin critics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def td_target(rewards: Tensor, next_values: Tensor, done: Tensor, *, gamma: float) -> Tensor:
    """y = r + γ (1 − d) V(s'); whatever is said of the value after the end is ignored."""
    return rewards + gamma * torch.where(done.bool(), torch.zeros_like(next_values), next_values)


def double_dqn_values(online: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Values of next states by double Q-learning (van Hasselt et al., 2016).

        V(s') = Q_target(s', argmax_c Q_online(s', c))

    online, target [B, C]: both networks' values of the stored candidates; mask [B, C], 1 where there is a candidate.
    """
    if mask is not None:
        online = online.masked_fill(~mask.bool(), float("-inf"))
    return target.gather(1, online.argmax(dim=1, keepdim=True)).squeeze(1)


def expectile_loss(errors: Tensor, *, expectile: float) -> Tensor:
    """Asymmetric squares (IQL; Kostrikov et al., 2022).     |τ − 1[u < 0]| u²,  u = target − value"""
    weight = torch.where(errors < 0, 1.0 - expectile, expectile)
    return weight * errors**2


def twin_advantage(q: Tensor, v: Tensor) -> Tensor:
    """A(s, a) = min_i Q_i(s, a) − min_i V_i(s), as ArCHer's actor uses it. q, v [..., 2]."""
    return q.amin(-1) - v.amin(-1)


@torch.no_grad()
def track(target: nn.Module, online: nn.Module, *, tau: float) -> None:
    """Polyak's average, in place.     θ_target ← (1 − τ) θ_target + τ θ_online;  τ = 1 is a hard copy

    Only what `online` trains is touched: the rest has been equal from the start.
    """
    pairs = [
        (theirs, ours)
        for theirs, ours in zip(target.parameters(), online.parameters(), strict=True)
        if ours.requires_grad
    ]
    kept: list[Tensor] = [pair[0] for pair in pairs]
    new: list[Tensor] = [pair[1] for pair in pairs]
    if tau == 1.0:
        torch._foreach_copy_(kept, new)
    else:
        torch._foreach_lerp_(kept, new, tau)
