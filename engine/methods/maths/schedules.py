"""Schedules over iterations. Pure arithmetic, no tensors."""

from __future__ import annotations


def linear_decay(iteration: int, *, start: float, end: float, over: int) -> float:
    """From `start` at iteration 0 in a straight line to `end` at iteration `over`, and constant after that."""
    if over <= 0 or iteration >= over:
        return end
    return start + (end - start) * iteration / over
