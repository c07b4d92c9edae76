"""From the validator's errors to problems a person can act on: where it stands, what is wrong, what was meant.

`shapes` knows what the models allow at a place, `phrases` words the message, `render` shows it in its source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.errors import Problem
from engine.spec import phrases
from engine.spec.shapes import Shape, names_of, places_of
from engine.spec.tree import Node, Where

_CARET_WIDTH = 60
_LINE_WIDTH = 110
MAX_PROBLEMS = 100


def problems_of(
    error: ValidationError, root: Node, model: type[BaseModel], *, incomplete: bool = False
) -> list[Problem]:
    """Every problem that validating `root` as `model` found.

    A key that is missing because it was misspelt is one problem, not two. With `incomplete`, part of the tree
    could not be read, so that nothing is called missing.
    """
    details = error.errors(include_url=False)
    unknown = {tuple(map(str, d["loc"])) for d in details if d["type"] == "extra_forbidden"}
    problems = []
    for detail in details:
        loc = tuple(map(str, detail["loc"]))
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # its entries were refused, which is said of each
        if detail["type"] == "missing":
            misspelt = [key for *block, key in unknown if tuple(block) == loc[:-1]]
            if incomplete or any(phrases.close_to(key, [loc[-1]]) for key in misspelt):
                continue
        problems.append(_problem(detail, root, model))
    return problems


def meant_tag(error: ValidationError) -> tuple[str, str, str] | None:
    """For a block that says it is something unknown: (block, key, what was probably meant)."""
    for detail in error.errors(include_url=False):
        if detail["type"] == "union_tag_invalid" and len(detail["loc"]) == 1:
            context = detail["ctx"]
            close = phrases.close_to(context["tag"], phrases.listed(context["expected_tags"]))
            if close is not None:
                return str(detail["loc"][0]), context["discriminator"].strip("'"), close
    return None


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems without repetitions, by file and place; files as they are first mentioned. Very many are cut short."""
    unique = list(dict.fromkeys(problems))
    files = {name: index for index, name in enumerate(dict.fromkeys(problem.file for problem in unique))}
    ordered = sorted(unique, key=lambda p: (files[p.file], p.line or 0, p.column or 0))
    if len(ordered) > MAX_PROBLEMS:
        ordered[MAX_PROBLEMS:] = [Problem(f"and {len(ordered) - MAX_PROBLEMS} more problems")]
    return ordered


def placed(message: str, path: str, where: Where) -> Problem:
    """A problem at a place; one in an override names it, since that has no line."""
    if where.override:
        message = f"in the override {where.override!r}: {message}"
    return Problem(message, path, where.file, where.line, where.column)


def _problem(detail: Mapping[str, Any], root: Node, model: type[BaseModel]) -> Problem:
    kind, context = detail["type"], detail.get("ctx", {})
    walk = _Walk(root, Shape((model,)))
    loc = list(detail["loc"])
    last = str(loc.pop()) if kind in ("missing", "extra_forbidden") else ""
    for element in loc:
        walk.step(element)
    if kind == "extra_forbidden":
        return _unknown_key(last, walk, root, model)
    if kind == "missing":
        return placed(f"{walk.dotted(last)} is missing: add it", walk.dotted(last), walk.key_where)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = context["discriminator"].strip("'")
        tags = [tag for choice in walk.shape.models for tag in names_of(choice)]
        node = walk.node.get(key)
        if node is None:
            return placed(phrases.no_tag(walk.dotted(), key, tags), walk.dotted(key), walk.key_where)
        return placed(phrases.unknown_tag(walk.dotted(key), node.value, tags), walk.dotted(key), node.where)
    blamed = str(context["at"]).split(".") if kind == "spec" and context["at"] else []
    for key in blamed:
        walk.step(key)
    message = phrases.worded(kind, walk.dotted(), detail, nullable=walk.shape.nullable)
    block = isinstance(walk.node.value, Mapping | tuple)
    return placed(message, walk.dotted(), walk.key_where if blamed and block else walk.where)


def _unknown_key(key: str, walk: _Walk, root: Node, model: type[BaseModel]) -> Problem:
    method = root.at("algorithm", "name")
    chosen = str(method.value) if method is not None else ""
    path = walk.dotted(key)
    elsewhere = [place for place in dict.fromkeys(places_of(key, (model,), chosen)) if place != path]
    message = phrases.unknown_key(key, walk.dotted(), walk.shape.keys(), elsewhere)
    return placed(message, path, walk.node.keys.get(key, walk.where))


class _Walk:
    """Along an error's location through the tree and the models at once; tags of unions take no step in the tree."""

    def __init__(self, root: Node, shape: Shape) -> None:
        self.node, self.shape = root, shape
        self.path: list[str] = []
        self.where = self.key_where = root.where

    def step(self, element: str | int) -> None:
        """One element of a location."""
        known = self.shape.keys()
        narrowed = self.shape.tagged(str(element)) if len(self.shape.models) > 1 else None
        if narrowed is not None and str(element) not in known:
            self.shape = narrowed
            return
        child = self.node.child(element)
        if child is None:
            return  # a tag, or what stands for a mapping's key
        self.key_where = self.node.keys.get(str(element), child.where)
        self.node, self.where = child, child.where
        self.path.append(str(element))
        if isinstance(element, str):
            self.shape = self.shape.step(element)

    def dotted(self, *more: str) -> str:
        """The path so far, and what comes after it."""
        return ".".join((*self.path, *more))


def render(problem: Problem, source: str) -> str:
    """The problem with its line, the one before it, and a caret under its place."""
    lines = source.split("\n")
    if problem.line is None or not 1 <= problem.line <= len(lines):
        return str(problem)
    gutter = len(str(problem.line))
    out = [str(problem)]
    for number in range(max(1, problem.line - 1), problem.line + 1):
        text, shift = _window(lines[number - 1], problem.column if number == problem.line else None)
        out.append(f"  {number:>{gutter}} | {text}".rstrip())
    if problem.column is not None:
        start = max(0, min(problem.column - 1 - shift, len(text)))
        out.append(f"  {'':>{gutter}} | {' ' * start}{_caret(text[start:])}")
    return "\n".join(out)


def _window(line: str, column: int | None) -> tuple[str, int]:
    """The part of a line that fits and holds the column, printable; and how much was cut off its front."""
    line = "".join(c if c.isprintable() else " " for c in line.rstrip("\r"))
    start = max(0, min((column or 1) - 1 - _LINE_WIDTH // 2, len(line) - _LINE_WIDTH))
    return line[start : start + _LINE_WIDTH], start


def _caret(text: str) -> str:
    """A caret under the word or the quoted text that begins here."""
    if text[:1] in ("'", '"'):
        length = text.find(text[0], 1) + 1
    elif text[:1] in ("", "|", ">", "[", "{"):
        length = 1
    else:
        ends = (i for i, c in enumerate(text) if c in ',]}#"' or (c == ":" and text[i + 1 : i + 2] in ("", " ")))
        length = len(text[: next(ends, len(text))].rstrip())
    return "^" + "~" * min(max(length - 1, 0), _CARET_WIDTH)
