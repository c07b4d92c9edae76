"""Text of a growing token sequence, piece by piece.

The pieces of one row joined together are exactly the decode of its tokens (special tokens kept). A
character whose bytes are spread over several tokens appears with the token that completes it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

_REPLACEMENT = "\ufffd"


@lru_cache(maxsize=1)
def _byte_of() -> dict[str, int]:
    """GPT-2's map between bytes and printable characters, reversed."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in plain}
    table.update({chr(256 + i): byte for i, byte in enumerate(b for b in range(256) if b not in set(plain))})
    return table


class Detokeniser:
    """Turns tokens into text increments, for any number of rows at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._bytes = _byte_pieces(tokenizer)

    def open(self) -> Row:
        """The state of one row that has no tokens yet."""
        if self._bytes is not None:
            return ByteRow(self._bytes)
        return WindowRow(self._tokenizer)


class ByteRow:
    """A row of a byte-level tokenizer: tokens are byte strings, UTF-8 is decoded as it completes."""

    __slots__ = ("_decoder", "_pieces", "_plain")

    def __init__(self, pieces: Sequence[bytes | str]) -> None:
        self._pieces = pieces
        self._decoder: codecs.IncrementalDecoder | None = None

    def push(self, token: int) -> str:
        """The text that `token` adds."""
        piece = self._pieces[token] if token < len(self._pieces) else ""
        if isinstance(piece, str):  # whole characters
            if self._decoder is None:
                return piece
            pending, self._decoder = self._decoder.decode(b"", True), None
            return pending + piece
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = self._decoder.decode(piece)
        if not self._decoder.getstate()[0]:
            self._decoder = None
        return text

    def flush(self) -> str:
        """What is left of an unfinished character, as the tokenizer would decode it."""
        pending, self._decoder = (self._decoder.decode(b"", True), None) if self._decoder else ("", None)
        return pending


class WindowRow:
    """A row of any other tokenizer: decodes a short window twice and takes the difference."""

    __slots__ = ("_ids", "_read", "_start", "_tokenizer")

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def push(self, token: int) -> str:
        """The text that `token` adds."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        if after.endswith(_REPLACEMENT) and len(self._ids) - self._read < 4:  # a character in the making
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def flush(self) -> str:
        """What is left of an unfinished character, as the tokenizer would decode it."""
        before = self._decode(self._ids[self._start : self._read])
        after = self._decode(self._ids[self._start :])
        self._start = self._read = len(self._ids)
        return after[len(before) :]


Row = ByteRow | WindowRow


def _byte_pieces(tokenizer: Any) -> list[bytes | str] | None:
    """For a byte-level tokenizer, every token as text where it is whole characters, else as bytes; None for others."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.decoder).__name__ != "ByteLevel":
        return None
    cached: list[bytes | str] | None = getattr(tokenizer, "_rlx_pieces", None)
    size = len(tokenizer)
    if cached is not None and len(cached) == size:
        return cached
    table = _byte_of()
    added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    names = tokenizer.convert_ids_to_tokens(list(range(size)))
    pieces: list[bytes | str] = []
    for index, name in enumerate(names):
        if index in added:
            pieces.append(added[index])
            continue
        known = name is not None and all(char in table for char in name)
        raw = bytes(table[char] for char in name) if known else (name or "").encode()
        try:
            pieces.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            pieces.append(raw)
    tokenizer._rlx_pieces = pieces
    return pieces
