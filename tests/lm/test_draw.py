"""Drawing a token: against a race run in plain Python, against frequencies, and against log-softmax."""

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


def exponentials(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).exponential(size=shape).astype(np.float32))


@pytest.mark.parametrize("vocabulary", [1, 2, 500, 2047, 2048, 2049, 5000, 32000])
def test_the_first_to_arrive_is_drawn(vocabulary):
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 3
    noise = exponentials(40, vocabulary)

    ids, logps = draw(logits, noise, PARAMS)

    gumbels = logits.double().numpy() - np.log(noise.double().numpy())  # the same race in other words
    assert ids.tolist() == gumbels.argmax(-1).tolist()
    assert_close(logps, torch.log_softmax(logits, -1)[torch.arange(40), ids], rtol=0, atol=2e-6)


@pytest.mark.parametrize("vocabulary", [7, 3000])
def test_impossible_tokens_never_win(vocabulary):
    logits = torch.full((500, vocabulary), float("-inf"))
    logits[:, 3], logits[:, vocabulary - 1] = 0.0, 1.0

    ids, logps = draw(logits, exponentials(500, vocabulary), PARAMS)

    assert set(ids.tolist()) == {3, vocabulary - 1}
    expected = torch.log_softmax(torch.tensor([0.0, 1.0]), -1)
    assert_close(logps, expected[(ids != 3).long()])


def test_frequencies_match_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])

    ids, _ = draw(logits.expand(20_000, 5), exponentials(20_000, 5), PARAMS)

    counts = np.bincount(ids.numpy(), minlength=5)
    assert stats.chisquare(counts, torch.softmax(logits.double(), -1).numpy() * 20_000).pvalue > 1e-3


NOISE = exponentials(4000, 6)


@given(st.floats(0.3, 3.0), st.integers(1, 6), st.floats(0.05, 0.99))
def test_filters_and_temperature_shape_the_draw_but_not_the_log_probs(temperature, top_k, top_p):
    logits = torch.tensor([1.3, 0.2, -0.7, 2.1, 0.9, -2.0])
    params = SamplingParams(max_new_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p)

    ids, logps = draw(logits.expand(4000, 6), NOISE, params)

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
        assert abs(float((ids == index).double().mean()) - share) < 0.05


def test_temperature_zero_is_the_argmax_and_needs_no_noise():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, -1.0, 0.0]])

    ids, logps = draw(logits, None, SamplingParams(max_new_tokens=1, temperature=0.0))

    assert ids.tolist() == [1, 0]
    assert_close(logps, torch.log_softmax(logits, -1)[[0, 1], [1, 0]])


def test_sampling_without_noise_is_refused():
    with pytest.raises(ValueError, match="needs noise"):
        draw(torch.zeros(1, 3), None, PARAMS)
