"""Intervals of means over items: against scipy, a closed form, and the share of simulated worlds they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from engine.compare.bootstrap import difference_interval, mean_interval, shared_items


def test_the_mean_weighs_every_item_the_same_however_often_it_was_scored():
    interval = mean_interval({0: [1.0], 1: [0.0, 0.0, 0.0]})

    assert interval.mean == 0.5  # not 1/4
    assert (interval.count, interval.items) == (4, 2)


def test_the_percentile_interval_is_scipys_up_to_the_draw():
    values = np.random.default_rng(3).exponential(size=40)

    ours = mean_interval({item: [value] for item, value in enumerate(values)}, resamples=40_000)

    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(9)
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_one_item_with_ten_binary_scores_follows_the_binomial():
    # The resampled mean of 10 draws from 7 ones and 3 zeros is Binomial(10, 0.7)/10: its 2.5 % and 97.5 % points.
    interval = mean_interval({0: [1.0] * 7 + [0.0] * 3}, resamples=20_000)

    assert interval.mean == pytest.approx(0.7)
    assert interval.low == pytest.approx(stats.binom.ppf(0.025, 10, 0.7) / 10)
    assert interval.high == pytest.approx(stats.binom.ppf(0.975, 10, 0.7) / 10)


def test_repeats_of_one_item_do_not_pretend_to_be_items():
    # Two hundred repeats of each of 36 items leave 36 things to resample, not 7,200.
    means = np.linspace(0, 1, 36)
    interval = mean_interval({item: [mean] * 200 for item, mean in enumerate(means)}, resamples=40_000)

    deviation = math.sqrt(np.var(means) / 36)  # of a mean of 36 draws from the 36 means
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * deviation, rel=0.04)


def test_about_ninety_five_in_a_hundred_worlds_are_covered():
    rng = np.random.default_rng(0)
    worlds, covered = 300, 0
    for _ in range(worlds):
        level = rng.normal(2.0, 1.0, size=60)
        scores = {item: rng.normal(mean, 0.5, size=3).tolist() for item, mean in enumerate(level)}
        interval = mean_interval(scores, resamples=400)
        covered += interval.low <= 2.0 <= interval.high
    # Binomial(300, 0.94): four standard deviations either side.
    assert 0.885 <= covered / worlds <= 0.985


def test_a_paired_difference_forgets_how_hard_the_items_are():
    hardness = np.linspace(0, 100, 30)
    a = {item: [hard] for item, hard in enumerate(hardness)}
    b = {item: [hard + 1.0 + 0.1 * (-1) ** item] for item, hard in enumerate(hardness)}

    interval = difference_interval(a, b)

    assert interval.mean == pytest.approx(1.0)
    assert 0.9 < interval.low < 1.0 < interval.high < 1.1


def test_with_one_shared_item_the_repeats_are_resampled_apart():
    a, b = {0: [0.0, 1.0] * 20}, {0: [0.0, 1.0] * 20}

    interval = difference_interval(a, b, resamples=40_000)

    # Each mean of 40 fair coins has variance 1/160, so their difference 1/80; pairing repeats would say 0.
    assert interval.high == pytest.approx(1.96 * math.sqrt(1 / 80), rel=0.08)
    assert interval.low == pytest.approx(-interval.high, abs=0.03)


def test_only_items_with_scores_on_both_sides_are_shared():
    assert shared_items({0: [1.0], 1: [], 2: [0.0]}, {2: [1.0], 1: [1.0], 3: [1.0]}) == [2]
    with pytest.raises(ValueError, match="in common"):
        difference_interval({0: [1.0]}, {1: [1.0]})


def test_no_scores_is_an_error_not_a_nan():
    with pytest.raises(ValueError, match="no scores"):
        mean_interval({0: []})


def test_the_same_seed_gives_the_same_interval():
    scores = {item: [item**1.5] for item in range(20)}
    assert mean_interval(scores, seed=5) == mean_interval(scores, seed=5)
    assert mean_interval(scores, seed=5) != mean_interval(scores, seed=6)
