"""Policy losses, against the ten numbers of the method card and derivatives taken by hand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from engine.methods.maths.policy import awr_weight, clipped_loss, importance_ratio, reinforce_loss

RATIOS = (0.5, 0.9, 1.0, 1.1, 1.5)


def test_the_clip_on_both_sides() -> None:
    gain = -clipped_loss(tensor(RATIOS), tensor(1.0), clip=0.2)
    loss = -clipped_loss(tensor(RATIOS), tensor(-1.0), clip=0.2)

    assert_close(gain, tensor([0.5, 0.9, 1.0, 1.1, 1.2]))
    assert_close(loss, tensor([-0.8, -0.9, -1.0, -1.1, -1.5]))


def test_only_steps_further_out_have_no_gradient() -> None:
    for sign, flat in ((1.0, 1.5), (-1.0, 0.5)):
        ratio = tensor(RATIOS, requires_grad=True)
        clipped_loss(ratio, tensor(sign), clip=0.2).sum().backward()
        expected = tensor([0.0 if value == flat else -sign for value in RATIOS])
        assert_close(ratio.grad, expected)


@given(st.floats(0.01, 5.0), st.floats(-10.0, 10.0), st.floats(0.05, 0.5))
def test_the_sign_form_is_the_same_loss(ratio: float, advantage: float, clip: float) -> None:
    """The original writes min(ρA, (1 + ε sign A) A)."""
    ours = clipped_loss(tensor(ratio), tensor(advantage), clip=clip).item()
    sign = 1.0 if advantage > 0 else -1.0
    theirs = -min(ratio * advantage, (1 + clip * sign) * advantage)
    assert abs(ours - theirs) < 1e-4


def test_the_ratio_of_a_policy_to_itself_is_one() -> None:
    logps = torch.log(tensor([0.1, 0.7]))
    assert_close(importance_ratio(logps, logps), torch.ones(2))
    assert_close(importance_ratio(torch.log(tensor([0.2])), torch.log(tensor([0.1]))), tensor([2.0]))


def test_reinforce_weighs_the_score_function_and_not_the_advantage() -> None:
    logits = tensor([0.0, 0.0], requires_grad=True)
    advantage = tensor(3.0, requires_grad=True)
    reinforce_loss(torch.log_softmax(logits, 0)[0], advantage).backward()

    # d(−A log π_0)/dz = −A (1 − π_0, −π_1)
    assert_close(logits.grad, tensor([-1.5, 1.5]))
    assert advantage.grad is None


def test_advantage_weights_are_exponential_and_bounded() -> None:
    assert_close(awr_weight(tensor([0.0, 1.0, 100.0]), beta=2.0), tensor([1.0, 7.3890561, 20.0]))
