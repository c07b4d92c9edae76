"""What the databases cannot hold, replaced by the nearest thing they can.

Generated text may contain NUL characters and lone surrogates; JSON may contain NaN. PostgreSQL refuses
the first and the last, both databases refuse the second, and no sample is worth losing over one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def storable_text(text: str) -> str:
    """`text` with NUL shown as ␀ and lone surrogates as �."""
    if "\x00" in text:
        text = text.replace("\x00", "␀")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return text


def storable_json(value: Any) -> Any:
    """`value` as JSON data: text as above, numbers that are not finite as null, anything else as text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable_text(str(key)): storable_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [storable_json(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, tensors
        return storable_json(value.tolist())
    return storable_text(str(value))


def finite(value: float | None) -> float | None:
    """None for a number that is not finite."""
    return value if value is not None and math.isfinite(value) else None
