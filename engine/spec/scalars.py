"""What a plain word means in a spec: YAML 1.2's core schema, in which `no` is text and `1e-3` is a number."""

from __future__ import annotations

import math
import re

from engine.spec.tree import Scalar

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_PREFIX = "tag:yaml.org,2002:"
_TYPES: dict[str, tuple[type, ...]] = {
    "null": (type(None),),
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
}
_NUMERIC = frozenset("+-.0123456789")


def resolve(text: str) -> Scalar:
    """The value of an unquoted scalar. Raises ValueError for a number that JSON cannot carry."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _NUMERIC:
        return text
    if _INT.fullmatch(text):
        number = _integer(text)
        if not -(2**63) <= number < 2**64:
            raise ValueError("this number does not fit into 64 bits: quote it if it is a text")
        return number
    if _FLOAT.fullmatch(text):
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("this number is too large for a float: quote it if it is a text")
        return value
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("numbers must be finite: leave the setting out, or write null, where there is no limit")
    return text


def _integer(text: str) -> int:
    if len(text) > 40:
        return 2**64  # out of range whatever it is, and not worth converting
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def resolve_tagged(tag: str, text: str) -> Scalar:
    """The value of a scalar with an explicit tag. Raises ValueError for a tag that data does not need."""
    if tag in ("!", _PREFIX + "str"):
        return text
    kind = tag.removeprefix(_PREFIX)
    if not tag.startswith(_PREFIX) or kind not in _TYPES:
        raise ValueError(f"the tag {shown_tag(tag)} is not allowed: a spec is plain data")
    value = resolve(text)
    if type(value) not in _TYPES[kind]:
        raise ValueError(f"{text!r} is not a {kind}, as its tag says")
    return float(value) if kind == "float" and isinstance(value, int) else value


def shown_tag(tag: str) -> str:
    """A tag as one writes it."""
    return "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag
