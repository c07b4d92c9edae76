"""What a stage computes, as a stream of 64-bit fingerprints: the evidence that two runs did the same.

Whoever draws a batch, samples, scores or takes an optimiser step notes it, in the one place where all methods do so;
a method itself only says at which step it is. Where the stream is kept is the context's business, how two of them are
compared `engine.compare.fingerprints`'.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from engine.runtime.context import Functions, Stops
from engine.store.fingerprints import Fingerprint, Layer

Keep = Callable[[Sequence[Fingerprint]], None]
"""Takes neighbouring entries of the stream, in order."""

_MOST = 4096
"""Entries that wait in memory at most."""


class Trace:
    """The stream of one stage. Used by the stage's own thread alone."""

    def __init__(self, keep: Keep | None = None, reached: Callable[[int], None] | None = None) -> None:
        """Without `keep` nothing is noted. `reached` is called with the place of an entry before it is made."""
        self.step = 0
        """The step that what is noted belongs to; set by the stage."""
        self.place = 0
        """Of the next entry."""
        self._keep, self._reached = keep, reached
        self._waiting: list[Fingerprint] = []

    @property
    def on(self) -> bool:
        """Whether anybody keeps the stream: if not, what would be noted need not be worked out."""
        return self._keep is not None

    def note(self, layer: Layer, *values: Any) -> None:
        """Enter the fingerprint of `values`: see `digest`."""
        if self._keep is None:
            return
        if self._reached is not None:
            self._reached(self.place)
        self._waiting.append(Fingerprint(self.place, self.step, layer, digest(*values)))
        self.place += 1
        if len(self._waiting) >= _MOST:
            self.flush()

    def flush(self) -> None:
        """Hand over what waits."""
        if self._waiting and self._keep is not None:
            waiting, self._waiting = self._waiting, []
            self._keep(waiting)

    def rewind(self, place: int, step: int) -> None:
        """Go on from a checkpoint of `step`, before whose end `place` entries were made; what waits is forgotten."""
        self._waiting.clear()
        self.place, self.step = place, step


SILENT = Trace()
"""Notes nothing."""


def digest(*values: Any) -> int:
    """64 bits of BLAKE2b over the exact bits of tensors, arrays, numbers, texts and sequences of them.

    Equal values of another type or shape have another fingerprint. Raises TypeError for anything else.
    """
    hashed = blake2b(digest_size=8)
    for value in values:
        _feed(hashed, value)
    return int.from_bytes(hashed.digest(), "little")


def _feed(hashed: Any, value: Any) -> None:
    torch = sys.modules.get("torch")  # without it there are no tensors
    if torch is not None and isinstance(value, torch.Tensor):
        tensor = value.detach()
        name = str(tensor.dtype)
        if tensor.dtype is torch.bfloat16:  # which numpy lacks
            tensor = tensor.view(torch.int16)
        _feed_array(hashed, name, tensor.cpu().numpy())
        return
    match value:
        case np.ndarray() | np.generic():
            _feed_array(hashed, value.dtype.str, np.asarray(value))
        case None | bool():
            hashed.update(f"{value};".encode())
        case int():
            hashed.update(f"i{value};".encode())
        case float():
            hashed.update(b"f" + struct.pack("<d", value))
        case str():
            data = value.encode("utf-8", "surrogatepass")
            hashed.update(f"s{len(data)};".encode() + data)
        case bytes():
            hashed.update(f"b{len(value)};".encode() + value)
        case list() | tuple():
            _feed_sequence(hashed, value)
        case _:
            raise TypeError(f"a {type(value).__name__} has no fingerprint: pass tensors, arrays, numbers or texts")


def _feed_array(hashed: Any, dtype: str, data: np.ndarray[Any, Any]) -> None:
    if data.dtype.hasobject:
        raise TypeError("an array of objects has no fingerprint")
    hashed.update(f"a{dtype}{data.shape};".encode() + data.tobytes())


def _feed_sequence(hashed: Any, value: Sequence[Any]) -> None:
    hashed.update(f"[{len(value)};".encode())
    kinds = set(map(type, value))
    if kinds == {float}:
        hashed.update(b"d" + array("d", value).tobytes())
    elif kinds == {int} and -(2**63) <= min(value) <= max(value) < 2**63:
        hashed.update(b"q" + array("q", value).tobytes())
    else:
        for item in value:
            _feed(hashed, item)


class TracedFunctions:
    """The user's functions, what they answer noted. What `done` and `split` say shows in what is sampled."""

    def __init__(self, functions: Functions, trace: Trace) -> None:
        self._functions, self._trace = functions, trace

    @property
    def hash(self) -> str:
        """See `Functions`."""
        return self._functions.hash

    @property
    def has_reply(self) -> bool:
        """See `Functions`."""
        return self._functions.has_reply

    def score(self, texts: Sequence[str], answers: Sequence[Any]) -> list[float]:
        """See `Functions`."""
        return self._noted(self._functions.score(texts, answers))

    def done(self, texts: Sequence[str]) -> list[bool]:
        """See `Functions`."""
        return self._functions.done(texts)

    def split(self, outputs: Sequence[str]) -> list[bool]:
        """See `Functions`."""
        return self._functions.split(outputs)

    def reply(self, texts: Sequence[str], answers: Sequence[Any]) -> list[str]:
        """See `Functions`."""
        return self._noted(self._functions.reply(texts, answers))

    def stops(self) -> Stops:
        """See `Functions`."""
        return self._functions.stops()

    def close(self) -> None:
        """See `Functions`."""
        self._functions.close()

    def _noted(self, answers: list[Any]) -> list[Any]:
        self._trace.note(Layer.REWARD, answers)
        return answers
