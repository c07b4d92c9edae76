"""What differs between two runs: their specs, code, packages and hardware, as dotted paths with both values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final


class _Absent:
    """Stands for a value that one side does not have at all; `null` is a value."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Final = _Absent()


@dataclass(frozen=True)
class Difference:
    """One path at which two trees disagree."""

    path: str
    a: Any
    b: Any

    def as_json(self) -> dict[str, Any]:
        """As plain data; an absent side has no key, since null is a value."""
        sides = {"a": self.a, "b": self.b}
        return {"path": self.path, **{key: value for key, value in sides.items() if value is not ABSENT}}


def differences(a: Any, b: Any) -> list[Difference]:
    """Every leaf that differs between two trees of mappings and lists, by its dotted path.

    Lists of one length are compared place by place, others as a whole: an inserted line says more than a shifted rest.
    """
    return list(_walk(a, b, ""))


def _walk(a: Any, b: Any, path: str) -> Iterator[Difference]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _walk(a.get(key, ABSENT), b.get(key, ABSENT), f"{path}.{key}" if path else str(key))
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        for index, (one, other) in enumerate(zip(a, b, strict=True)):
            yield from _walk(one, other, f"{path}[{index}]")
    elif not _same(a, b):
        yield Difference(path, a, b)


def _same(a: Any, b: Any) -> bool:
    # True == 1 in Python, but not in a spec; 1 == 1.0 in both.
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)
