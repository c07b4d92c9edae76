"""Drawing a token: against a running sum in plain Python, against frequencies, and against log-softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.testing import assert_close

from engine.lm.draw import draw
from engine.lm.sampler import SamplingParams

PARAMS = SamplingParams(max_new_tokens=1)


def brute_force(logits: np.ndarray, uniform: float) -> int:
    """The first index at which the running sum of exp(logits) exceeds uniform · total, in extended precision."""
    sums = np.cumsum(np.exp(logits.astype(np.longdouble) - logits.max()))
    return int(np.argmax(sums > uniform * sums[-1]))


@pytest.mark.parametrize("vocabulary", [2, 500, 2048, 2049, 5000, 32000])
def test_the_running_sum_is_inverted(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(64, vocabulary, generator=generator) * 3
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)

    ids, _ = draw(logits, uniform, PARAMS)

    expected = [brute_force(row.numpy(), float(u)) for row, u in zip(logits, uniform, strict=True)]
    agreement = np.mean(np.array(expected) == ids.numpy())
    assert agreement >= 0.98, "float32 weights may move a boundary past a number now and then, no more"


@pytest.mark.parametrize("vocabulary", [7, 3000])
def test_the_ends_of_the_interval_never_fall_off_or_onto_an_impossible_token(vocabulary):
    logits = torch.full((2, vocabulary), float("-inf"))
    logits[:, 3], logits[:, 5] = 0.0, 1.0

    ids, logps = draw(logits, torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64), PARAMS)

    assert ids.tolist() == [3, 5]
    assert_close(logps, torch.log_softmax(torch.tensor([0.0, 1.0]), -1))


def test_frequencies_match_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    uniform = torch.from_numpy(np.random.default_rng(0).random(20_000))

    ids, _ = draw(logits.expand(20_000, 5), uniform, PARAMS)

    counts = np.bincount(ids.numpy(), minlength=5)
    assert stats.chisquare(counts, torch.softmax(logits.double(), -1).numpy() * 20_000).pvalue > 1e-3


@given(st.floats(0.3, 3.0), st.integers(1, 6), st.floats(0.05, 0.99))
def test_filters_and_temperature_shape_the_draw_but_not_the_log_probs(temperature, top_k, top_p):
    logits = torch.tensor([1.3, 0.2, -0.7, 2.1, 0.9, -2.0])
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    params = SamplingParams(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)

    ids, logps = draw(logits.expand(1000, 6), uniform, params)

    tempered = torch.softmax(logits.double() / temperature, -1)
    order = tempered.argsort(descending=True)
    allowed = order[:top_k]
    shares = tempered[allowed] / tempered[allowed].sum()
    reached = shares.cumsum(0) - shares
    allowed = allowed[reached < top_p]
    assert set(ids.tolist()) <= set(allowed.tolist())
    assert_close(logps, torch.log_softmax(logits, -1)[ids], rtol=0, atol=1e-6)
    for index in allowed:
        share = float(tempered[index] / tempered[allowed].sum())
        assert abs(float((ids == index).double().mean()) - share) < 0.005


def test_temperature_zero_is_the_argmax_and_needs_no_noise():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])

    ids, logps = draw(logits, None, SamplingParams(max_new_tokens=1, temperature=0.0))

    assert ids.tolist() == [1, 0]
    assert_close(logps, torch.log_softmax(logits, -1)[[0, 1], [1, 0]])


def test_sampling_without_noise_is_refused():
    with pytest.raises(ValueError, match="needs noise"):
        draw(torch.zeros(1, 3), None, PARAMS)
