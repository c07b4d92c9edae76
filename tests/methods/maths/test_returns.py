"""Returns and advantages, against numbers worked by hand and the identities of the method card."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from engine.methods.maths.returns import final_rewards, gae, returns

# Identity a: values before each of three tokens, a reward of 1 at the last one.
VALUES = tensor([[0.2, 0.4, 0.5, 0.0]])
REWARDS = tensor([[0.0, 0.0, 1.0]])
CONTINUES = tensor([[1.0, 1.0, 0.0]])


def test_three_tokens_worked_by_hand() -> None:
    advantages = gae(REWARDS, VALUES, CONTINUES, gamma=1.0, lam=0.95)

    # δ = 0.2, 0.1, 0.5;  A_2 = 0.1 + 0.95·0.5;  A_1 = 0.2 + 0.95·A_2
    assert_close(advantages, tensor([[0.74625, 0.575, 0.5]]))
    assert_close(advantages + VALUES[:, :3], tensor([[0.94625, 0.975, 1.0]]))


def test_a_baseline_that_has_seen_the_action_is_another_estimator() -> None:
    """The original reads the value *after* each token; those numbers must not come out."""
    after_each_token = tensor([[0.4, 0.5, 0.8, 0.0]])
    shifted = gae(REWARDS, after_each_token, CONTINUES, gamma=1.0, lam=0.95)

    assert_close(shifted, tensor([[0.5655, 0.49, 0.2]]))
    assert not torch.allclose(shifted, gae(REWARDS, VALUES, CONTINUES, gamma=1.0, lam=0.95))


def test_two_steps_with_discount_and_bootstrap() -> None:
    advantages = gae(tensor([[1.0, 2.0]]), tensor([[0.5, 1.0, 4.0]]), torch.ones(1, 2), gamma=0.5, lam=0.5)

    # δ = (1 + ½·1 − ½, 2 + ½·4 − 1) = (1, 3);  A = (1 + ¼·3, 3)
    assert_close(advantages, tensor([[1.75, 3.0]]))


def test_lambda_one_gives_the_return_and_lambda_zero_the_td_error() -> None:
    full = gae(REWARDS, VALUES, CONTINUES, gamma=1.0, lam=1.0)
    assert_close(full + VALUES[:, :3], torch.ones(1, 3))

    assert_close(gae(REWARDS, VALUES, CONTINUES, gamma=1.0, lam=0.0), tensor([[0.2, 0.1, 0.5]]))


@given(garbage=st.floats(-1e3, 1e3), width=st.integers(1, 5))
def test_padding_after_the_last_token_changes_nothing(garbage: float, width: int) -> None:
    padding = torch.full((1, width), garbage)
    padded = gae(
        torch.cat([REWARDS, padding], 1),
        torch.cat([VALUES[:, :3], padding, padding[:, :1]], 1),
        torch.cat([CONTINUES, torch.ones(1, width)], 1),
        gamma=1.0,
        lam=0.95,
    )
    assert_close(padded[:, :3], tensor([[0.74625, 0.575, 0.5]]))


def test_with_exact_values_the_advantage_points_at_the_better_token() -> None:
    """Identity c: two fair binary tokens, reward 1 iff both are 1, exact values (¼; 0, ½; 0, 0, 0, 1)."""
    before = {(): 0.25, (0,): 0.0, (1,): 0.5}
    after = {**before, (0, 0): 0.0, (0, 1): 0.0, (1, 0): 0.0, (1, 1): 1.0}
    outcomes = [(a, b) for a in (0, 1) for b in (0, 1)]
    rewards = tensor([[0.0, float(a * b)] for a, b in outcomes])
    continues = tensor([[1.0, 0.0]]).expand(4, 2)

    right = gae(rewards, tensor([[before[()], before[(a,)], 0.0] for a, _ in outcomes]), continues, gamma=1.0, lam=0.95)
    assert right[:2, 0].mean().item() == pytest.approx(-0.25)
    assert right[2:, 0].mean().item() == pytest.approx(+0.25)
    assert_close(right[2:, 1], tensor([-0.5, 0.5]))

    # The original's baseline includes the token it judges: no signal is left, whatever lambda is.
    leaky = gae(
        rewards, tensor([[after[(a,)], after[(a, b)], 0.0] for a, b in outcomes]), continues, gamma=1.0, lam=0.95
    )
    assert leaky[:2, 0].mean().item() == pytest.approx(0.0)
    assert leaky[2:, 0].mean().item() == pytest.approx(0.0)
    assert_close(leaky[:, 1], torch.zeros(4))


def test_returns_are_the_discounted_sum_and_stop_at_an_end() -> None:
    out = returns(tensor([[1.0, 2.0, 3.0, 4.0]]), tensor([[1.0, 0.0, 1.0, 1.0]]), bootstrap=tensor([8.0]), gamma=0.5)
    # from the end: 4 + ½·8 = 8;  3 + ½·8 = 7;  2 (an end);  1 + ½·2 = 2
    assert_close(out, tensor([[2.0, 2.0, 7.0, 8.0]]))


def test_a_score_is_paid_at_the_last_token_only() -> None:
    rewards = final_rewards(tensor([0.7, -0.2]), tensor([1, 3]), steps=4)
    assert_close(rewards, tensor([[0.7, 0, 0, 0], [0, 0, -0.2, 0]]))
