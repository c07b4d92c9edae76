"""Sampling noise by key: the same (seed, environment, step, candidate, position) always draws the same number.

A counter-based hash instead of a stream, so that it does not matter in which order, in which batch or on
which device tokens are drawn. One uniform a token: the draw itself (`draw.py`) inverts the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / φ, the increment of SplitMix64
_CANDIDATE = np.uint64(0xD1B54A32D192ED03)
_POSITION = np.uint64(0xABC98388FB8FAC03)


@dataclass(frozen=True)
class NoiseKey:
    """What the noise of one prompt's candidates depends on, besides the candidate and the token's position."""

    seed: int
    environment: int = 0
    step: int = 0


def _mix(x: int) -> int:
    """SplitMix64's finaliser (Steele, Lea & Flood, 2014) on a Python integer."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix_array(x: np.ndarray) -> np.ndarray:
    """The same finaliser on an array of uint64, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _root(key: NoiseKey) -> int:
    state = 0
    for part in (key.seed, key.environment, key.step):
        state = _mix(state + _GOLDEN ^ _mix(part + _GOLDEN))
    return state


def uniforms(keys: Sequence[NoiseKey], candidates: int, positions: int) -> np.ndarray:
    """Numbers in [0, 1) for every key, candidate and position: float64 [keys, candidates, positions]."""
    roots = np.array([_root(key) for key in keys], dtype=np.uint64)[:, None]
    columns = np.arange(1, candidates + 1, dtype=np.uint64)[None] * _CANDIDATE
    rows = _mix_array(roots ^ columns)[:, :, None]
    steps = np.arange(1, positions + 1, dtype=np.uint64)[None, None] * _POSITION
    hashed = _mix_array(rows ^ steps)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
