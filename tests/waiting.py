"""Waiting for what other processes do: a bounded poll."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 240.0


def until(condition: Callable[[], T | None], what: str = "for what the test needs", seconds: float = PATIENCE_S) -> T:
    """The condition's value once it is true; AssertionError after a bounded wait."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.02)
    return value
