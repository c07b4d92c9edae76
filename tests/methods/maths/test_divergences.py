"""Entropy and divergence, against closed forms and exhaustive expectations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from engine.methods.maths.divergences import entropy, kl, sampled_kl

LOGITS = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


def test_entropy_of_a_uniform_and_a_certain_choice() -> None:
    assert_close(entropy(torch.zeros(3, 8)), torch.full((3,), math.log(8)))
    assert entropy(tensor([100.0, 0.0])).item() == pytest.approx(0.0, abs=1e-6)


def test_kl_between_two_coins() -> None:
    p, q = tensor([0.75, 0.25]), tensor([0.5, 0.5])
    assert kl(p.log(), q.log()).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


@given(LOGITS, LOGITS, st.floats(-3, 3))
def test_kl_is_never_negative_and_blind_to_a_shift(a: list[float], b: list[float], shift: float) -> None:
    divergence = kl(tensor(a), tensor(b))
    assert divergence.item() >= -1e-6
    assert_close(kl(tensor(a) + shift, tensor(b)), divergence, atol=1e-4, rtol=1e-4)


@given(LOGITS, LOGITS)
def test_the_sampled_estimate_is_unbiased_and_never_negative(a: list[float], b: list[float]) -> None:
    logps, reference = torch.log_softmax(tensor(a), 0), torch.log_softmax(tensor(b), 0)
    estimates = sampled_kl(logps, reference)
    assert estimates.min().item() >= -1e-6
    assert_close((logps.exp() * estimates).sum(), kl(tensor(a), tensor(b)), atol=1e-4, rtol=1e-4)
