"""From the validator's errors to problems a person can act on: where it stands, what is wrong, what was meant.

`located` finds the place and the shape an error is about, `phrases` words it, `render` shows it in its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.errors import Problem
from engine.spec import phrases
from engine.spec.shapes import Shape, places_of
from engine.spec.tree import Node, Where

_CARET_WIDTH = 60
_LINE_WIDTH = 110


def problems_of(error: ValidationError, root: Node, model: type[BaseModel]) -> list[Problem]:
    """Every problem that validating `root` as `model` found, in the order of the file."""
    found = [_problem(detail, root, model) for detail in error.errors(include_url=False)]
    return in_order(found)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems without repetitions, by file and place; files in the order in which they are first mentioned."""
    unique = list(dict.fromkeys(problems))
    files = {name: index for index, name in enumerate(dict.fromkeys(problem.file for problem in unique))}
    return sorted(unique, key=lambda p: (files[p.file], p.line or 0, p.column or 0))


def placed(message: str, path: str, where: Where) -> Problem:
    """A problem at a place; one in an override names it, since that has no line."""
    if where.override is not None:
        message = f"in the override {where.override!r}: {message}"
    return Problem(message, path, where.file, where.line, where.column)


def _problem(detail: Mapping[str, Any], root: Node, model: type[BaseModel]) -> Problem:
    kind, context = detail["type"], detail.get("ctx", {})
    walk = _Walk(root, Shape((model,)))
    loc = list(detail["loc"])
    last = loc.pop() if kind in ("missing", "extra_forbidden") and loc else None
    for element in loc:
        walk.step(element)
    if kind == "extra_forbidden":
        return _unknown_key(str(last), walk, model)
    if kind == "missing":
        path = walk.dotted(str(last))
        return placed(phrases.missing(path, walk.has_keys_like(str(last))), path, walk.key_where)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = phrases.listed(context.get("expected_tags", ""))
        key = str(context.get("discriminator", "'name'")).strip("'")
        node = walk.node.get(key) if walk.node is not None else None
        tags = tags or [tag for m in walk.shape.models for tag in phrases.tags_of(m)]
        path = walk.dotted(key)
        if node is None:
            return placed(phrases.no_tag(walk.dotted(), key, tags), path, walk.key_where)
        return placed(phrases.unknown_tag(path, node.value, tags), path, node.where)
    for key in filter(None, str(context.get("at", "")).split(".")) if kind == "spec" else ():
        walk.step(key)
    message = phrases.worded(kind, walk.dotted(), detail, nullable=walk.shape.nullable)
    return placed(message, walk.dotted(), walk.where)


def _unknown_key(key: str, walk: _Walk, model: type[BaseModel]) -> Problem:
    path = walk.dotted(key)
    where = walk.node.keys.get(key, walk.where) if walk.node is not None else walk.where
    elsewhere = [place for place in dict.fromkeys(places_of(key, walk.narrowed(model))) if place != path]
    return placed(phrases.unknown_key(key, walk.dotted(), walk.shape.keys(), elsewhere), path, where)


class _Walk:
    """Along an error's location through the tree and the models at once; tags of unions take no step in the tree."""

    def __init__(self, root: Node, shape: Shape) -> None:
        self.node: Node | None = root
        self.shape = shape
        self.path: list[str] = []
        self.where = self.key_where = root.where
        self._root = root

    def step(self, element: str | int) -> None:
        """One element of a location."""
        narrowed = self.shape.tagged(str(element)) if len(self.shape.models) > 1 else None
        if narrowed is not None and str(element) not in self.shape.keys():
            self.shape = narrowed
            return
        child = self.node.child(element) if self.node is not None else None
        if child is None or self.node is None:
            return  # a tag, or the part of a union that the validator tried
        self.key_where = self.node.keys.get(str(element), child.where)
        self.node, self.where = child, child.where
        self.path.append(str(element))
        if isinstance(element, str):
            self.shape = self.shape.step(element)

    def dotted(self, *more: str) -> str:
        """The path so far, and what comes after it."""
        return ".".join((*self.path, *more))

    def has_keys_like(self, key: str) -> list[str]:
        """Keys that the user wrote here."""
        return [written for written in self.node.keys if written != key] if self.node is not None else []

    def narrowed(self, model: type[BaseModel]) -> Iterator[type[BaseModel]]:
        """The models to look for a misplaced key in: all blocks, but of the methods only the one chosen."""
        yield model


def render(problem: Problem, source: str) -> str:
    """The problem with the lines around it and a caret under its place."""
    lines = source.split("\n")
    if problem.line is None or not 1 <= problem.line <= len(lines):
        return str(problem)
    first = max(1, problem.line - 1)
    gutter = len(str(problem.line))
    out = [str(problem)]
    for number in range(first, problem.line + 1):
        text, shift = _window(lines[number - 1], problem.column if number == problem.line else 1)
        out.append(f"  {number:>{gutter}} | {text}".rstrip())
        if number == problem.line and problem.column is not None:
            start = min(problem.column - 1, len(lines[number - 1])) - shift
            out.append(f"  {'':>{gutter}} | {' ' * start}{_caret(text[start:])}")
    return "\n".join(out)


def _window(line: str, column: int | None) -> tuple[str, int]:
    """The part of a line that fits and holds the column, with no character wider than one; and what was cut off."""
    line = "".join(c if c.isprintable() else " " for c in line.rstrip("\r"))
    if len(line) <= _LINE_WIDTH:
        return line, 0
    start = max(0, min((column or 1) - 1 - _LINE_WIDTH // 2, len(line) - _LINE_WIDTH))
    return line[start : start + _LINE_WIDTH], start


def _caret(text: str) -> str:
    """A caret under the word or the quoted text that begins here."""
    end = 0
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1) + 1
    elif text[:1] not in ("", "|", ">", "[", "{"):
        end = next(
            (i for i, c in enumerate(text) if c in ':,]}#"' and (c != ":" or text[i + 1 : i + 2] in ("", " "))),
            len(text),
        )
        end = len(text[:end].rstrip())
    return "^" + "~" * min(max(end - 1, 0), _CARET_WIDTH)


def excerpts(problems: Sequence[Problem], sources: Mapping[str, str]) -> str:
    """Every problem, each in its source where that is known."""
    return "\n".join(render(problem, sources.get(problem.file or "", "")) for problem in problems)
