"""Learning curves as numbers: the area under one, and how much it took to reach a threshold.

A curve is a score over a cost (optimiser steps, scored episodes, generated tokens, seconds): which cost is the
caller's choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """Points (x, y) with rising x; of points that share an x the last one stands."""

    x: tuple[float, ...]
    y: tuple[float, ...]

    @staticmethod
    def of(points: Sequence[tuple[float, float]]) -> Curve:
        """A curve from points in any order."""
        ordered = sorted(dict(points).items())
        return Curve(tuple(x for x, _ in ordered), tuple(y for _, y in ordered))

    def __len__(self) -> int:
        return len(self.x)

    def at(self, x: float) -> float:
        """The height at `x`, linear between points. Raises ValueError outside of the curve."""
        if not self.x or not self.x[0] <= x <= self.x[-1]:
            raise ValueError(f"{x} lies outside of the curve")
        for i in range(1, len(self.x)):
            if x <= self.x[i]:
                share = (x - self.x[i - 1]) / (self.x[i] - self.x[i - 1])
                return self.y[i - 1] + share * (self.y[i] - self.y[i - 1])
        return self.y[0]


def common_range(a: Curve, b: Curve) -> tuple[float, float] | None:
    """The stretch of x that both curves cover, or None where they share no more than a point."""
    if not len(a) or not len(b):
        return None
    low, high = max(a.x[0], b.x[0]), min(a.x[-1], b.x[-1])
    return (low, high) if low < high else None


def mean_height(curve: Curve, low: float, high: float) -> float:
    """The area under the curve between `low` and `high` by the trapezoid rule, divided by the width.

    Divided, so that it is in units of the score and two runs of different length can be read side by side.
    """
    if low >= high:
        raise ValueError("the range has no width")
    inside = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if low < x < high]
    points = [(low, curve.at(low)), *inside, (high, curve.at(high))]
    area = sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    return area / (high - low)


def reached(curve: Curve, threshold: float) -> float | None:
    """The x of the first measured point at or above `threshold`; None if there is none.

    Nothing is interpolated: between two evaluations nobody knows.
    """
    return next((x for x, y in zip(curve.x, curve.y, strict=True) if y >= threshold), None)
