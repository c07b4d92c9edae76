"""What ArCHer's critic minimises, per transition, and what an utterance is worth to the generator. Tensors only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from engine.methods.maths.critics import double_dqn_values, td_target


def dqn_targets(
    rewards: Tensor, done: Tensor, online: Tensor, target: Tensor, present: Tensor, *, gamma: float
) -> Tensor:
    """y = r + γ (1 − d) Q_target(s', argmax_c Q_online(s', c)) over the stored candidates.

    rewards, done [B]; online, target [B, C] values of the next states' candidates; present [B, C] marks real ones.
    """
    return td_target(rewards, double_dqn_values(online, target, present), done, gamma=gamma)


def squared_errors(values: Tensor, targets: Tensor) -> Tensor:
    """(Q(s, a) − y)², with y held constant."""
    return (values - targets.detach()) ** 2


def qv_errors(q: Tensor, v: Tensor, q_targets: Tensor, v_targets: Tensor) -> Tensor:
    """ArCHer's critic loss for both twins.

        Σ_i (Q_i(s, a) − [r + γ(1 − d) V̄_i(s')])² + (V_i(s) − Q̄_i(s, ã))²,   ã ~ π(·|s) sampled now

    all [B, 2]; returns [B].
    """
    return ((q - q_targets.detach()) ** 2 + (v - v_targets.detach()) ** 2).sum(-1)


def utterance_rewards(
    values: Sequence[float], *, signal: Literal["q", "centred", "advantage"], executed: int, score: float | None
) -> list[float]:
    """What each candidate of one decision earns the generator.

    `values` are Q(s, c), or A(s, c) for `advantage`. The candidate that was said and ended the episode earns what it
    really scored, unless advantages are asked for; `centred` then subtracts the mean of all.
    """
    rewards = list(values)
    if score is not None and signal != "advantage":
        rewards[executed] = score
    if signal == "centred":
        mean = sum(rewards) / len(rewards)
        rewards = [reward - mean for reward in rewards]
    return rewards


def padded(rows: Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
    """[B, width] of ragged rows, and which entries are real; a row may be empty, which its mask hides but for one."""
    values = torch.zeros(len(rows), width)
    present = torch.zeros(len(rows), width, dtype=torch.bool)
    present[:, 0] = True
    for index, row in enumerate(rows):
        values[index, : len(row)] = row
        present[index, : len(row)] = True
    return values, present
