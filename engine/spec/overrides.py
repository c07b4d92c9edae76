"""`key.path=value` on the command line: a last layer over the spec, and several values for one key as a sweep."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

from engine.errors import Problem, SpecError
from engine.spec.reader import Unreadable, read_yaml
from engine.spec.tree import Node, Where

MAX_VARIANTS = 1000
_KEY = re.compile(r"[^.=\s]+(\.[^.=\s]+)*")


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """Every combination that `a=1,2,3` asks for, the last key varying fastest; one list without any sweep.

    A comma in brackets, braces or quotes belongs to its value. Raises SpecError.
    """
    alternatives: list[list[str]] = []
    problems: list[Problem] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        parts = split_commas(value) if equals else [value]
        if len(parts) > 1 and not all(part.strip() for part in parts):
            problems.append(Problem(f"the override {text!r} has nothing between two commas", key))
        alternatives.append([f"{key}={part.strip()}" for part in parts] if len(parts) > 1 else [text])
    if math.prod(len(choices) for choices in alternatives) > MAX_VARIANTS:
        problems.append(Problem(f"the overrides ask for more than {MAX_VARIANTS} variants"))
    if problems:
        raise SpecError(problems)
    return [list(choice) for choice in itertools.product(*alternatives)]


def split_commas(value: str) -> list[str]:
    """The parts of a value between commas that stand outside quotes and brackets."""
    parts, depth, quote, start = [], 0, "", 0
    fresh = True  # whether a quote here would begin a quoted text
    for index, character in enumerate(value):
        if quote:
            escaped = quote == '"' and _escaped(value, index)
            quote = "" if character == quote and not escaped else quote
            continue
        if character in "\"'" and fresh:
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth <= 0:
            parts.append(value[start:index])
            start = index + 1
        fresh = character in ",[{: "
    return [*parts, value[start:]]


def _escaped(value: str, index: int) -> bool:
    before = value[:index]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def layer(overrides: Iterable[str]) -> tuple[Node, list[Problem]]:
    """The overrides as one tree, and what is wrong with those that are left out of it."""
    root = Node({}, Where(override=""))
    problems: list[Problem] = []
    seen: set[str] = set()
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not _KEY.fullmatch(key):
            problems.append(Problem(f"the override {text!r} is not of the form key.path=value"))
        elif key in seen:
            problems.append(Problem(f"{key} is overridden twice: keep one", key))
        elif len(split_commas(value)) > 1:
            problems.append(Problem(f"the override {text!r} is a sweep, which is not one experiment", key))
        else:
            seen.add(key)
            try:
                node, found = _value(text, value)
            except Unreadable as error:
                problems.append(Problem(f"{error.problem.message}; a text with such characters needs quotes", key))
                continue
            problems += found
            root = assign(root, key.split("."), node, Where(override=text))
    return root, problems


def _value(text: str, value: str) -> tuple[Node, list[Problem]]:
    if not value.strip():
        return Node(None, Where(override=text)), []
    return read_yaml(value, override=text)


def assign(root: Node, path: Sequence[str], value: Node, where: Where) -> Node:
    """The tree with `value` at the end of `path`; what stands in the way is replaced."""
    if not path:
        return value
    below = root if isinstance(root.value, dict) else Node({}, where)
    child = below.get(path[0]) or Node({}, where)
    return below.with_key(path[0], assign(child, path[1:], value, where), where)
