"""Collapsing memory into huge pages changes no byte of it."""

from __future__ import annotations

import numpy as np

from workers import memory


def test_what_was_there_is_still_there() -> None:
    numbers = np.arange(4 << 20, dtype=np.int64)
    assert memory.collapse() >= 0
    assert (numbers == np.arange(4 << 20)).all()
