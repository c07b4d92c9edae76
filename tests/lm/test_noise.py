"""Keyed noise: the same key the same numbers, whatever else is drawn; and numbers as random as they should be."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.lm.noise import NoiseKey, exponentials, seeds, words

KEYS = st.builds(NoiseKey, st.integers(-(2**63), 2**63 - 1), st.integers(0, 10_000), st.integers(0, 10_000))


@given(st.lists(KEYS, min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 20))
@settings(deadline=None)
def test_numbers_depend_on_their_key_candidate_and_position_alone(keys, candidates, positions):
    together = words(keys, candidates, positions)

    for i, key in enumerate(keys):
        alone = words([key], candidates + 3, positions + 5)[:positions, :candidates]
        np.testing.assert_array_equal(together[:, i * candidates : (i + 1) * candidates], alone)
    rows = exponentials(together[0], 50)
    for i, row in enumerate(rows):
        assert torch.equal(exponentials(together[0, i : i + 1], 50)[0], row)


def test_every_part_of_the_key_matters():
    keys = [NoiseKey(s, e, t) for s in range(10) for e in range(10) for t in range(10)]

    bits = words(keys, 8, 8).reshape(-1, 2)

    assert len(np.unique(bits, axis=0)) == len(bits)


def test_the_numbers_are_standard_exponentials_and_never_the_ends():
    bits = words([NoiseKey(0, e, t) for e in range(10) for t in range(10)], 4, 4).reshape(-1, 2)

    numbers = exponentials(bits, 500).numpy()

    assert numbers.min() > 0
    assert np.isfinite(numbers).all()
    sample = np.random.default_rng(0).choice(numbers.ravel(), 50_000, replace=False)
    assert stats.kstest(sample, "expon").pvalue > 1e-3


def test_extreme_words_stay_inside_the_interval():
    every = np.array([[0, 0], [2**32 - 1, 2**32 - 1]], dtype=np.uint32)

    numbers = exponentials(every, 70_000)

    assert float(numbers.min()) > 0
    assert bool(numbers.isfinite().all())


def test_neighbours_of_any_kind_are_uncorrelated():
    bits = words([NoiseKey(3, e) for e in range(16)], 16, 16)
    numbers = (
        exponentials(bits.reshape(-1, 2), 64).numpy().reshape(16, 16, 16, 64)
    )  # position, environment, candidate, entry

    for axis in range(4):
        a, b = (np.take(numbers, range(start, numbers.shape[axis] - 1 + start), axis).ravel() for start in (0, 1))
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.01


def test_which_entry_wins_is_uniform_over_entries():
    bits = words([NoiseKey(9, e) for e in range(64)], 16, 16).reshape(-1, 2)

    winners = exponentials(bits, 100).argmin(-1)

    assert stats.chisquare(np.bincount(winners, minlength=100)).pvalue > 1e-3


def test_both_words_of_a_row_matter():
    rows = exponentials(np.array([[1, 1], [1, 2], [2, 1]], dtype=np.uint32), 500)

    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(float(np.corrcoef(rows[i], rows[j])[0, 1])) < 0.15


@given(st.lists(KEYS, min_size=1, max_size=5, unique=True), st.integers(1, 9))
@settings(deadline=None)
def test_a_row_has_one_seed_whatever_else_is_asked_for_and_no_two_rows_share_one(keys, candidates):
    together = seeds(keys, candidates)

    assert together == [seed for key in keys for seed in seeds([key], candidates)]
    assert seeds(keys[:1], candidates + 3)[:candidates] == together[:candidates]
    assert len(set(together)) == len(keys) * candidates
    assert all(0 <= seed < 2**63 for seed in together)
