"""Sampling noise by key: the same (seed, environment, step, candidate, position) always draws the same token.

A hash instead of a stream, so that it does not matter in which order, in which batch or on which device
tokens are drawn. Every vocabulary entry gets an exponential of its own and the smallest one relative to its
probability wins (`draw.py`), which is the Gumbel-max draw: rounding in the logits can change the outcome only
where two entries are as good as tied, and not, as with a running sum, at each of V boundaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / φ, the increment of SplitMix64
_CANDIDATE = np.uint64(0xD1B54A32D192ED03)
_POSITION = np.uint64(0xABC98388FB8FAC03)
_UNIT = np.float32(2.0**-32 * (1.0 - 2.0**-23))
"""Takes 1 … 2³² − 1 into the open interval (0, 1), whatever float32 rounds them to."""


@dataclass(frozen=True)
class NoiseKey:
    """What the noise of one prompt's candidates depends on, besides the candidate and the token's position."""

    seed: int
    environment: int = 0
    step: int = 0


def words(keys: Sequence[NoiseKey], candidates: int, positions: int) -> np.ndarray:
    """64 random bits for every position, key and candidate, as uint32 [positions, keys · candidates, 2]."""
    steps = np.arange(1, positions + 1, dtype=np.uint64)[:, None] * _POSITION
    return _mix_array(_rows(keys, candidates)[None] ^ steps).view(np.uint32).reshape(positions, -1, 2)


def seeds(keys: Sequence[NoiseKey], candidates: int) -> list[int]:
    """63 random bits for every key and candidate: a seed for an engine that draws with a generator a row."""
    bits: list[int] = (_rows(keys, candidates) >> np.uint64(1)).tolist()
    return bits


def _rows(keys: Sequence[NoiseKey], candidates: int) -> np.ndarray:
    roots = np.array([_root(key) for key in keys], dtype=np.uint64)[:, None]
    return _mix_array(roots ^ (np.arange(1, candidates + 1, dtype=np.uint64)[None] * _CANDIDATE)).reshape(-1)


def exponentials(row_words: np.ndarray, vocabulary: int) -> Tensor:
    """A standard exponential for every row and vocabulary entry, from the rows' words [R, 2]: float32 [R, V].

    The hash is MurmurHash3's finaliser (Appleby, 2011) with the second word stirred in halfway.
    """
    first, second = row_words[:, :1], row_words[:, 1:]
    x = _entries(vocabulary) ^ first
    spare = np.empty_like(x)
    x ^= np.right_shift(x, 16, out=spare)
    x *= np.uint32(0x85EBCA6B)
    x ^= np.right_shift(x, 13, out=spare)
    x ^= second
    x *= np.uint32(0xC2B2AE35)
    x ^= np.right_shift(x, 16, out=spare)
    x |= np.uint32(1)
    uniform = x.astype(np.float32)
    uniform *= -_UNIT
    return torch.from_numpy(uniform).log1p_().neg_()


@lru_cache(maxsize=8)
def _entries(vocabulary: int) -> np.ndarray:
    """A different odd multiple for each vocabulary entry: uint32 [1, V]."""
    return (np.arange(1, vocabulary + 1, dtype=np.uint64)[None] * np.uint64(0x9E3779B1)).astype(np.uint32)


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
