"""A dataset block's splits as lists of items: `train` is its `items`, the others are named under `splits`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.data.items import read_items
from engine.data.rows import row
from engine.errors import DataError
from engine.spec.dataset import TRAIN, Dataset, Item, Message


def split_items(dataset: Mapping[str, Any] | Dataset, base: Path | None = None) -> dict[str, list[Item]]:
    """Every split of a dataset block, `train` first; the block is the spec's model or its resolved mapping.

    Items stand inline or behind a source (see `items.read_items`), whose file is relative to `base`. Raises
    DataError for what cannot be read, and for a split without items.
    """
    block = dataset.model_dump(mode="json") if isinstance(dataset, Dataset) else dataset
    sources = {TRAIN: block.get("items"), **(block.get("splits") or {})}
    found = {name: _items(source, name, base) for name, source in sources.items()}
    for name, items in found.items():
        if not items:
            raise DataError(f"the split {name!r} has no items; a dataset needs at least one in each split")
    return found


def _items(source: Any, split: str, base: Path | None) -> list[Item]:
    if isinstance(source, Mapping):
        return [Item(**values) for values in read_items(source, base)]
    return [_inline(value, f"{split}:{number}") for number, value in enumerate(source or (), 1)]


def _inline(value: Any, place: str) -> Item:
    values = row(place, value).values
    messages = values.get("messages")
    if messages is None and not isinstance(values.get("prompt"), str):
        raise DataError(f"{place}: an item needs a `prompt`, which is text")
    return Item(**{**values, "messages": messages and tuple(Message(**message) for message in messages)})
