"""Bootstrap confidence intervals for means over dataset items that were scored several times each.

The unit that is resampled is the item, because scores of one item hang together; a single item leaves
only its repeats to resample. Whether two runs differ is `permutation`'s question, not this module's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[int, Sequence[float]]
"""Item -> the scores it received, one a repeat."""

Floats = NDArray[np.float64]

RESAMPLES = 10_000
_CHUNK = 2_000_000
"""Numbers drawn at once: bounds the memory, whatever the number of items."""


@dataclass(frozen=True)
class Interval:
    """A mean and the bootstrap interval around it; `count` is the number of scores behind it."""

    mean: float
    low: float
    high: float
    count: int
    items: int
    confidence: float = 0.95


def item_means(scores: Scores) -> Floats:
    """The mean score of each item, in the order of `scores`; items without a score do not count."""
    return np.array([float(np.mean(values)) for values in scores.values() if len(values)], dtype=np.float64)


def mean_interval(scores: Scores, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean over items of each item's mean, with its percentile interval.

    Items are resampled with replacement and keep their repeats (Davison and Hinkley, 1997, section 3.8: replacement at
    the highest level only, or the variance within items counts twice). One item alone has its repeats resampled.
    """
    units = _units(scores)
    rng = np.random.default_rng(seed)
    low, high = _percentiles(_resampled_means(units, rng, resamples), confidence)
    return Interval(
        mean=float(item_means(scores).mean()),
        low=low,
        high=high,
        count=sum(len(values) for values in scores.values()),
        items=sum(1 for values in scores.values() if len(values)),
        confidence=confidence,
    )


def difference_interval(
    a: Scores, b: Scores, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean difference b − a over the items that both have, with its percentile interval.

    Paired: a resampled item brings its scores under both. With one shared item the repeats of the two are resampled
    apart from each other, since the third repeat of one has nothing to do with the third of the other.
    """
    shared = shared_items(a, b)
    if not shared:
        raise ValueError("the two have no scored item in common")
    rng = np.random.default_rng(seed)
    if len(shared) > 1:
        differences = np.array([np.mean(b[item]) - np.mean(a[item]) for item in shared], dtype=np.float64)
        means = _resampled_means(differences, rng, resamples)
        mean = float(differences.mean())
    else:
        item = shared[0]
        first, second = np.asarray(a[item], dtype=np.float64), np.asarray(b[item], dtype=np.float64)
        means = _resampled_means(second, rng, resamples) - _resampled_means(first, rng, resamples)
        mean = float(second.mean() - first.mean())
    low, high = _percentiles(means, confidence)
    count = sum(len(a[item]) + len(b[item]) for item in shared)
    return Interval(mean=mean, low=low, high=high, count=count, items=len(shared), confidence=confidence)


def shared_items(a: Scores, b: Scores) -> list[int]:
    """The items that were scored at least once in both, in rising order."""
    return sorted(item for item in a if item in b and len(a[item]) and len(b[item]))


def _units(scores: Scores) -> Floats:
    scored = [values for values in scores.values() if len(values)]
    if not scored:
        raise ValueError("there are no scores to average")
    return item_means(scores) if len(scored) > 1 else np.asarray(scored[0], dtype=np.float64)


def _resampled_means(units: Floats, rng: np.random.Generator, resamples: int) -> Floats:
    means = np.empty(resamples, dtype=np.float64)
    step = max(1, _CHUNK // units.size)
    for start in range(0, resamples, step):
        stop = min(resamples, start + step)
        means[start:stop] = units[rng.integers(0, units.size, size=(stop - start, units.size))].mean(axis=1)
    return means


def _percentiles(means: Floats, confidence: float) -> tuple[float, float]:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return float(low), float(high)
