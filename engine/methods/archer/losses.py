"""What ArCHer's critic minimises, per transition, and what an utterance is worth to the generator. Tensors only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.methods.maths.critics import double_dqn_values, td_target


def dqn_targets(
    rewards: Tensor, done: Tensor, online: Tensor, target: Tensor, present: Tensor, *, gamma: float
) -> Tensor:
    """y = r + γ (1 − d) Q_target(s', argmax_c Q_online(s', c)) over the stored candidates.

    rewards, done [B]; online, target [B, C] values of the next states' candidates; present [B, C] marks real ones.
    """
    return td_target(rewards, double_dqn_values(online, target, present), done, gamma=gamma)


Errors = Callable[[Tensor, Tensor], Tensor]
"""From the critic's outputs and their targets to one error each, of the same shape."""


def squared_errors(values: Tensor, targets: Tensor) -> Tensor:
    """(Q(s, a) − y)², with y held constant."""
    return (values - targets.detach()) ** 2


def squashed_errors(logits: Tensor, targets: Tensor) -> Tensor:
    """(σ(z) − y)², with y held constant. Its gradient dies where σ(z) is near 0 or 1, right or wrong."""
    return squared_errors(logits.sigmoid(), targets)


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """−y log σ(z) − (1 − y) log(1 − σ(z)), with y in [0, 1] held constant.

    Least where σ(z) is the mean of y, as the squared error is; but its gradient in z is σ(z) − y itself, so a critic
    that calls everything worthless still learns from its first success (compare Farebrother et al., 2024).
    """
    return F.binary_cross_entropy_with_logits(logits, targets.detach(), reduction="none")


def error_function(loss: Literal["squared", "cross_entropy"], *, sigmoid: bool) -> Errors:
    """The error between the critic's outputs and their targets that a spec asks for."""
    match loss:
        case "squared":
            return squashed_errors if sigmoid else squared_errors
        case "cross_entropy":
            return cross_entropies
        case _:
            assert_never(loss)


def qv_errors(q: Tensor, v: Tensor, q_targets: Tensor, v_targets: Tensor, errors: Errors = squared_errors) -> Tensor:
    """ArCHer's critic loss for both twins.

        Σ_i (Q_i(s, a) − [r + γ(1 − d) V̄_i(s')])² + (V_i(s) − Q̄_i(s, ã))²,   ã ~ π(·|s) sampled now

    all [B, 2]; returns [B].
    """
    return (errors(q, q_targets) + errors(v, v_targets)).sum(-1)


def utterance_rewards(
    values: Sequence[float], *, signal: Literal["q", "centred", "advantage"], executed: int, earned: float | None
) -> list[float]:
    """What each candidate of one decision earns the generator.

    `values` are Q(s, c), or A(s, c) for `advantage`. The candidate that was said and ended the episode earns what it
    really `earned`, unless advantages are asked for; `centred` then subtracts the mean of all.
    """
    rewards = list(values)
    if earned is not None and signal != "advantage":
        rewards[executed] = earned
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
