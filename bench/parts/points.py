"""The points that every side of a metric benchmark is given, so that what was read back can be compared."""

from __future__ import annotations


def value(key: int, step: int) -> float:
    """What key number `key` is at `step`: any float, and the same one every time."""
    return ((step * 7919 + key * 104_729) % 1_000_003) / 977


def logged(keys: int, steps: int) -> list[dict[str, float]]:
    """One dictionary a step, as a training loop would log it."""
    return [{f"k{key}": value(key, step) for key in range(keys)} for step in range(steps)]
