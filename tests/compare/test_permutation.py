"""The paired test: against scipy's exact tests, a brute-force loop, and its false alarms under the null."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from engine.compare.permutation import paired_permutation_test


def test_one_score_an_item_is_the_sign_flip_test_of_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=9), rng.normal(0.7, 1.0, size=9)

    ours = paired_permutation_test({i: [x] for i, x in enumerate(a)}, {i: [x] for i, x in enumerate(b)})

    theirs = stats.permutation_test(
        (b, a),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert ours.exact
    assert ours.arrangements == 2**9
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_one_item_is_the_two_sample_test_of_scipy():
    a, b = [0.0, 1.0, 0.0, 0.5, 0.0, 0.25], [1.0, 1.0, 0.75, 0.0, 1.0]

    ours = paired_permutation_test({4: a}, {4: b})

    theirs = stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis), vectorized=True, n_resamples=np.inf
    )
    assert ours.exact
    assert ours.p_value == pytest.approx(theirs.pvalue)


def test_all_against_nothing_leaves_two_extreme_arrangements():
    test = paired_permutation_test({0: [0.0] * 10}, {0: [1.0] * 10})

    assert test.difference == 1.0
    assert test.arrangements == 184_756  # 20 over 10
    assert test.p_value == pytest.approx(2 / 184_756)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=1, max_size=7))
def test_sign_flips_counted_by_a_loop(pairs):
    a, b = {i: [float(x)] for i, (x, _) in enumerate(pairs)}, {i: [float(y)] for i, (_, y) in enumerate(pairs)}
    deltas = [y - x for x, y in pairs]
    extreme = [
        abs(sum(s * d for s, d in zip(signs, deltas, strict=False))) >= abs(sum(deltas))
        for signs in product((1, -1), repeat=len(deltas))
    ]

    assert paired_permutation_test(a, b).p_value == pytest.approx(sum(extreme) / len(extreme))


def test_swapping_the_runs_flips_the_difference_and_keeps_the_p():
    a, b = {0: [0.1, 0.9], 1: [0.4, 0.2]}, {0: [0.8, 1.0], 1: [0.3, 0.9]}

    forth, back = paired_permutation_test(a, b), paired_permutation_test(b, a)

    assert forth.difference == pytest.approx(-back.difference)
    assert forth.p_value == pytest.approx(back.p_value)


def test_drawn_arrangements_agree_with_the_enumeration():
    rng = np.random.default_rng(4)
    a = {item: rng.normal(size=3).tolist() for item in range(4)}
    b = {item: rng.normal(0.6, 1.0, size=3).tolist() for item in range(4)}

    exact = paired_permutation_test(a, b)
    drawn = paired_permutation_test(a, b, exact_limit=0, resamples=20_000)

    assert (exact.exact, drawn.exact) == (True, False)
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.015)


def test_a_drawn_p_is_never_zero():
    a, b = {item: [0.0] * 5 for item in range(30)}, {item: [1.0] * 5 for item in range(30)}
    assert paired_permutation_test(a, b, resamples=99).p_value == pytest.approx(1 / 100)


def test_items_are_dealt_within_themselves_only():
    # Item 1 is hard and item 0 easy for both; dealing across items would drown the constant difference of 1.
    a = {item: [10.0 * item] for item in range(8)}
    b = {item: [10.0 * item + 1.0] for item in range(8)}
    assert paired_permutation_test(a, b).p_value == pytest.approx(2 / 2**8)


def test_false_alarms_stay_at_the_level():
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(400):
        level = rng.normal(size=8)
        a = {i: rng.normal(x, 1.0, size=1).tolist() for i, x in enumerate(level)}
        b = {i: rng.normal(x, 1.0, size=1).tolist() for i, x in enumerate(level)}
        alarms += paired_permutation_test(a, b).p_value <= 0.05
    assert alarms / 400 <= 0.05 + 4 * (0.05 * 0.95 / 400) ** 0.5


def test_nothing_in_common_is_an_error():
    with pytest.raises(ValueError, match="in common"):
        paired_permutation_test({0: [1.0]}, {1: [1.0]})
