"""What every retriever does, whatever it searches: passages for queries, in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.errors import DataError


@dataclass(frozen=True)
class Passage:
    """A piece of a corpus."""

    id: str
    text: str
    title: str = ""


@dataclass(frozen=True)
class Hit:
    """A passage that was found, and how well it fits; larger is better."""

    passage: Passage
    score: float


class Retriever(Protocol):
    """Finds passages."""

    def search(self, queries: Sequence[str], k: int) -> Sequence[Sequence[Hit]]:
        """For each query at most `k` hits, best first."""
        ...


def read_corpus(path: Path) -> list[Passage]:
    """The passages of a JSONL file. Raises DataError naming the line."""
    try:
        with path.open(encoding="utf-8") as lines:
            passages = list(_passages(path, lines))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the corpus {path} cannot be read: {error}") from error
    if not passages:
        raise DataError(f"the corpus {path} has no passage")
    return passages


def _passages(path: Path, lines: Iterator[str]) -> Iterator[Passage]:
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: no JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise DataError(f"{path}:{number}: a passage is an object with a `text`")
        known = str(row.get("id", number))
        if known in seen:
            raise DataError(f"{path}:{number}: the id {known!r} was given to line {seen[known]} already")
        seen[known] = number
        yield Passage(known, row["text"], str(row.get("title", "")))
