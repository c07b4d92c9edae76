"""A dataset on the Hugging Face hub, through the `datasets` library, which is an extra (`rlx[hub]`).

The library keeps what it has downloaded. Code that a dataset brings along is never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from engine.data.rows import Row, row
from engine.errors import DataError


def read(name: str, *, subset: str | None, split: str, revision: str | None) -> Iterator[Row]:
    """Rows of one split, numbered from 1. Raises DataError where the dataset cannot be had."""
    library = _library(name)
    try:
        found = library.load_dataset(name, subset, split=split, revision=revision)
    except Exception as error:  # whatever escapes from the library becomes this boundary's type
        what = f"{name} (split {split!r}{f', subset {subset!r}' if subset else ''})"
        raise DataError(
            f"the hub's dataset {what} cannot be loaded: {type(error).__name__}: {error}\n"
            "Check the name and the split; without network it must have been loaded before."
        ) from error
    for number, values in enumerate(found, 1):
        yield row(f"{name}[{split}]:{number}", values)


def _library(name: str) -> ModuleType:
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"the dataset {name!r} is on the Hugging Face hub, which needs the `datasets` library: "
            "pip install 'rlx[hub]'"
        ) from None
    module: ModuleType = datasets
    return module
