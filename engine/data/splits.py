"""A dataset block's splits as lists of items: `train` is its `items`, the others are named under `splits`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from engine.data.items import Item, read_items
from engine.data.rows import row
from engine.errors import DataError

TRAIN = "train"


class Dumps(Protocol):
    """A pydantic model, such as the spec's dataset block."""

    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


def split_items(dataset: Mapping[str, Any] | Dumps, base: Path | None = None) -> dict[str, list[Item]]:
    """Every split of a resolved dataset block, `train` first.

    Items stand inline or behind a source (see `items.read_items`), whose file is relative to `base`. Raises
    DataError for what cannot be read, and for a split without items.
    """
    block = dataset if isinstance(dataset, Mapping) else dataset.model_dump(mode="json")
    sources = {TRAIN: block.get("items"), **(block.get("splits") or {})}
    found = {name: _items(source, name, base) for name, source in sources.items()}
    for name, items in found.items():
        if not items:
            raise DataError(f"the split {name!r} has no items; a dataset needs at least one in each split")
    return found


def _items(source: Any, split: str, base: Path | None) -> list[Item]:
    if isinstance(source, Mapping):
        return [Item(**values) for values in read_items(source, base)]
    if not isinstance(source, Sequence) or isinstance(source, str):
        raise DataError(f"the split {split!r} has no items")
    return [_inline(value, f"{split}:{number}") for number, value in enumerate(source, 1)]


def _inline(value: Any, place: str) -> Item:
    values = dict(row(place, value).values)
    if not isinstance(values.get("prompt"), str) or "answer" not in values:
        raise DataError(f"{place}: an item needs a `prompt`, which is text, and an `answer`")
    prompt, answer, columns = values.pop("prompt"), values.pop("answer"), values.pop("columns", None) or {}
    return Item(prompt, answer, {**values, **columns})
