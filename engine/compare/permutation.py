"""The paired permutation test: could these two runs' scores on the same items have come from one policy?

Exact where the arrangements can be enumerated, Monte Carlo beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb, prod

import numpy as np

from engine.compare.bootstrap import Floats, Scores, shared_items

EXACT_LIMIT = 200_000
"""Enumerate up to this many arrangements."""
RESAMPLES = 10_000
_TOLERANCE = 1e-12
"""Two arrangements whose statistics differ by rounding alone count as equal."""


@dataclass(frozen=True)
class PairedTest:
    """The two-sided p-value of `mean difference = 0`, and how it was found."""

    difference: float
    """Mean over shared items of mean(b) − mean(a)."""
    p_value: float
    items: int
    arrangements: int
    """How many were looked at; all there are if `exact`."""
    exact: bool


def paired_permutation_test(
    a: Scores, b: Scores, *, resamples: int = RESAMPLES, exact_limit: int = EXACT_LIMIT, seed: int = 0
) -> PairedTest:
    """Compare b with a on the items that both were scored on.

    Under the null hypothesis an item's scores are exchangeable between the two runs, so they are dealt out anew within
    each item, never across items. With one score a run and item this is the classical sign-flip test; with a single
    item it is the two-sample test over its repeats. The statistic is the mean over items of the difference of means.
    """
    shared = shared_items(a, b)
    if not shared:
        raise ValueError("the two have no scored item in common")
    pools = [np.concatenate([np.asarray(b[item], float), np.asarray(a[item], float)]) for item in shared]
    sizes = [len(b[item]) for item in shared]
    observed = float(np.mean([_difference(pool[None, :], size)[0] for pool, size in zip(pools, sizes, strict=True)]))
    arrangements = prod(comb(len(pool), size) for pool, size in zip(pools, sizes, strict=True))
    bound = abs(observed) - _TOLERANCE * max(1.0, *(float(np.abs(pool).max()) for pool in pools))
    if arrangements <= exact_limit:
        statistics = _enumerated(pools, sizes)
        p_value = float(np.mean(np.abs(statistics) >= bound))
        return PairedTest(observed, p_value, len(shared), arrangements, exact=True)
    statistics = _sampled(pools, sizes, np.random.default_rng(seed), resamples)
    # The arrangement that was seen counts too, or a p-value of zero would be possible (Phipson and Smyth, 2010).
    p_value = (1.0 + float(np.sum(np.abs(statistics) >= bound))) / (resamples + 1.0)
    return PairedTest(observed, p_value, len(shared), resamples, exact=False)


def _difference(pool: Floats, size: int) -> Floats:
    """mean(first `size`) − mean(the rest), along the last axis; a balanced deal is all that is left to chance."""
    rest = pool.shape[-1] - size
    first = pool[..., :size].sum(axis=-1)
    difference: Floats = first / size - (pool.sum(axis=-1) - first) / rest
    return difference


def _enumerated(pools: list[Floats], sizes: list[int]) -> Floats:
    totals = np.zeros(1)
    for pool, size in zip(pools, sizes, strict=True):
        chosen = np.array(list(combinations(range(len(pool)), size)))
        first = pool[chosen].sum(axis=1)
        each = first / size - (pool.sum() - first) / (len(pool) - size)
        totals = (totals[:, None] + each[None, :]).ravel()
    return totals / len(pools)


def _sampled(pools: list[Floats], sizes: list[int], rng: np.random.Generator, resamples: int) -> Floats:
    totals = np.zeros(resamples)
    for pool, size in zip(pools, sizes, strict=True):
        totals += _difference(rng.permuted(np.broadcast_to(pool, (resamples, len(pool))), axis=1), size)
    return totals / len(pools)
