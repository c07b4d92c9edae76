"""The critic's targets and the generator's rewards, on the method card's numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from engine.methods.archer.losses import (
    cross_entropies,
    dqn_targets,
    error_function,
    padded,
    qv_errors,
    squared_errors,
    utterance_rewards,
)


def test_a_double_dqn_step_as_a_whole() -> None:
    online, present = padded([tensor([0.2, 0.9, 0.5]), tensor([])], 3)
    target, _ = padded([tensor([0.6, 0.3, 0.8]), tensor([])], 3)

    targets = dqn_targets(tensor([0.0, 1.0]), tensor([False, True]), online, target, present, gamma=1.0)

    assert_close(targets, tensor([0.3, 1.0]))
    assert squared_errors(tensor([0.5, 0.4]), targets).mean().item() == pytest.approx(0.2)


def test_missing_candidates_do_not_win_with_their_padding() -> None:
    online, present = padded([tensor([-0.5]), tensor([-0.2, -0.9])], 2)
    target, _ = padded([tensor([-0.4]), tensor([-0.3, -0.1])], 2)

    targets = dqn_targets(torch.zeros(2), torch.zeros(2, dtype=torch.bool), online, target, present, gamma=0.5)

    assert_close(targets, tensor([-0.2, -0.15]))


def test_no_gradient_flows_into_a_target() -> None:
    targets = tensor([1.0], requires_grad=True)
    values = tensor([0.25], requires_grad=True)
    squared_errors(values, targets).sum().backward()
    assert targets.grad is None
    assert_close(values.grad, tensor([-1.5]))


def test_a_saturated_critic_learns_from_a_success_by_cross_entropy_alone() -> None:
    """At z = −6 and y = 1: d/dz (σ − y)² = 2 (σ − 1) σ (1 − σ), but d/dz of the cross-entropy is σ − 1."""
    slopes = {}
    for loss in ("squared", "cross_entropy"):
        logit = tensor([-6.0], requires_grad=True)
        error_function(loss, sigmoid=True)(logit, tensor([1.0])).sum().backward()  # type: ignore[arg-type]
        assert logit.grad is not None
        slopes[loss] = logit.grad.item()
    value = 1 / (1 + math.exp(6.0))
    assert slopes["squared"] == pytest.approx(2 * (value - 1) * value * (1 - value), rel=1e-4)
    assert slopes["cross_entropy"] == pytest.approx(value - 1, rel=1e-4)


@pytest.mark.parametrize("targets", [[0.0, 1.0, 1.0, 1.0], [0.2, 0.6], [0.0, 0.0]])
def test_cross_entropy_is_least_at_the_mean_of_its_targets(targets: list[float]) -> None:
    grid = torch.linspace(-9, 9, 1801)
    total = sum((cross_entropies(grid, torch.full_like(grid, y)) for y in targets), torch.zeros_like(grid))
    assert float(grid[total.argmin()].sigmoid()) == pytest.approx(sum(targets) / len(targets), abs=3e-3)


def test_both_twins_of_q_and_v_are_summed() -> None:
    errors = qv_errors(tensor([[1.0, 2.0]]), tensor([[0.5, 0.0]]), tensor([[0.0, 0.0]]), tensor([[0.0, 1.0]]))
    assert_close(errors, tensor([1.0 + 4.0 + 0.25 + 1.0]))


@pytest.mark.parametrize(
    ("signal", "earned", "expected"),
    [
        ("q", None, [0.2, 0.6, 0.4]),
        ("q", 1.0, [0.2, 1.0, 0.4]),  # what was said and ended the episode earns the truth
        ("centred", None, [-0.2, 0.2, 0.0]),
        ("advantage", 1.0, [0.2, 0.6, 0.4]),
    ],
)
def test_what_an_utterance_earns(signal: str, earned: float | None, expected: list[float]) -> None:
    rewards = utterance_rewards([0.2, 0.6, 0.4], signal=signal, executed=1, earned=earned)  # type: ignore[arg-type]
    assert rewards == pytest.approx(expected)
