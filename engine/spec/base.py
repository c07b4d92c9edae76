"""What every part of a spec is made of: frozen, strict models whose field docstrings are the user's help.

Here are the base class and the types with units. What a spec may contain is told by `experiment` and by
the methods' own configs; where a value stood in which file is `tree`'s and `diagnostics`' business.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError


class SpecModel(BaseModel):
    """A block of a spec: immutable, without unknown keys, and without conversions between types.

    An integer may stand where a number is expected; nothing else is converted.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=False,
        protected_namespaces=(),
    )


def complaint(message: str, *, at: str = "") -> PydanticCustomError:
    """An error to raise in a model's validator; `at` is the dotted path, from that model, of the key to blame.

    A plain ValueError does as well, and then blames the whole block.
    """
    return PydanticCustomError("spec", "{message}", {"message": message, "at": at})


_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[smhdw]))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGTP]i?)?B")
_PREFIXES = "KMGTP"


def parse_duration(value: Any) -> float:
    """Seconds from `45s`, `30m`, `1h30m`, `2d` or a number of seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and _DURATION.fullmatch(value):
        return sum(float(count) * _SECONDS[unit] for count, unit in _DURATION_PART.findall(value))
    raise complaint(f"{value!r} is not a duration: write 45s, 30m, 1h30m, 2d, or a number of seconds")


def parse_size(value: Any) -> int:
    """Bytes from `512MiB`, `20GiB`, `1.5GB` or a whole number of bytes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise complaint(f"{value!r} is not a size: write 512MiB, 20GiB, 1.5GB, or a whole number of bytes")
    count, prefix = found.groups()
    base: int = 1024 if prefix and prefix.endswith("i") else 1000
    factor = base ** (_PREFIXES.index(prefix[0]) + 1) if prefix else 1
    return round(float(count) * factor)


Duration = Annotated[
    float,
    Field(gt=0),
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": f"^{_DURATION.pattern}$"}]}
    ),
]
"""A length of time; the value is seconds."""

Size = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(parse_size),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": f"^{_SIZE.pattern}$"}]}),
]
"""An amount of memory or disk; the value is bytes."""
