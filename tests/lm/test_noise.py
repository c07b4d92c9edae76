"""Keyed noise: the same key the same number, whatever else is drawn; and numbers as uniform as they should be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from engine.lm.noise import NoiseKey, uniforms

KEYS = st.builds(NoiseKey, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10_000), st.integers(0, 10_000))


@given(st.lists(KEYS, min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 20))
def test_a_number_depends_on_its_key_candidate_and_position_alone(keys, candidates, positions):
    together = uniforms(keys, candidates, positions)

    for i, key in enumerate(keys):
        alone = uniforms([key], candidates + 3, positions + 5)[0, :candidates, :positions]
        np.testing.assert_array_equal(together[i], alone)


def test_every_part_of_the_key_matters():
    keys = [NoiseKey(s, e, t) for s in range(10) for e in range(10) for t in range(10)]

    numbers = uniforms(keys, 8, 8)

    assert len(np.unique(numbers)) == numbers.size


def test_numbers_are_uniform_and_neighbours_uncorrelated():
    numbers = uniforms([NoiseKey(0, e, t) for e in range(20) for t in range(20)], 16, 32)

    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 1e-3
    for axis in range(3):
        a, b = (np.take(numbers, range(start, numbers.shape[axis] - 1 + start), axis) for start in (0, 1))
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01
