"""Critics' targets, against the method card's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from engine.methods.maths.critics import double_dqn_values, expectile_loss, td_target, track, twin_advantage

ONLINE = tensor([[0.2, 0.9, 0.5]])
TARGET = tensor([[0.6, 0.3, 0.8]])


def test_double_dqn_judges_the_online_choice_by_the_target() -> None:
    """Identity d: the online network prefers candidate 1, which the target values 0.3 (plain DQN would say 0.8)."""
    values = double_dqn_values(ONLINE, TARGET)
    assert_close(td_target(tensor([0.0]), values, tensor([False]), gamma=1.0), tensor([0.3]))

    finished = td_target(tensor([1.0]), tensor([float("inf")]), tensor([True]), gamma=1.0)
    assert_close(finished, tensor([1.0]))

    targets = torch.cat([td_target(tensor([0.0]), values, tensor([False]), gamma=1.0), finished])
    assert ((tensor([0.5, 0.4]) - targets) ** 2).mean().item() == pytest.approx(0.2)


def test_a_missing_candidate_is_never_chosen() -> None:
    values = double_dqn_values(ONLINE, TARGET, mask=tensor([[True, False, True]]))
    assert_close(values, tensor([0.8]))


def test_episodes_of_one_utterance_are_plain_regression_on_scores() -> None:
    """Identity k: with every transition terminal, y = r whatever the networks say."""
    scores = torch.rand(16)
    nonsense = torch.full((16,), float("nan"))
    assert_close(td_target(scores, nonsense, torch.ones(16), gamma=1.0), scores)


def test_expectiles() -> None:
    """Identity l: the middle expectile is half the square; at 0.9, errors +1 and −1 weigh 0.9 and 0.1."""
    errors = torch.randn(32)
    assert_close(expectile_loss(errors, expectile=0.5), errors**2 / 2)
    assert_close(expectile_loss(tensor([1.0, -1.0]), expectile=0.9), tensor([0.9, 0.1]))


def test_the_advantage_is_pessimistic_about_both_critics() -> None:
    assert_close(twin_advantage(tensor([[0.9, 0.7]]), tensor([[0.4, 0.5]])), tensor([0.3]))


def test_polyak_moves_by_exactly_tau_and_a_hard_copy_arrives() -> None:
    target, online = nn.Linear(3, 2), nn.Linear(3, 2)
    before = target.weight.detach().clone()
    track(target, online, tau=0.25)
    assert_close(target.weight.detach(), 0.75 * before + 0.25 * online.weight.detach())

    track(target, online, tau=1.0)
    assert torch.equal(target.weight, online.weight)
    assert torch.equal(target.bias, online.bias)
