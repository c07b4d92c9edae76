"""From YAML text to a tree with positions, for input that nobody has vetted.

Only plain data comes out: no tags but the core ones, no objects. Size, depth and the number of nodes after
alias expansion are bounded while reading, so a YAML bomb costs no more than the text it is written in. The
tree is built from parser events with no recursion. What the data means is left to the models.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.errors import Problem
from engine.spec.scalars import resolve, resolve_tagged, shown_tag
from engine.spec.syntax import explained
from engine.spec.tree import Node, Scalar, Where

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000
MAX_CHARACTERS = 8 << 20
"""Of all texts together, aliases counted as often as they stand."""

# libyaml where PyYAML was built with it: the same events, ten times as fast.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_CONTAINERS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class Unreadable(Exception):
    """Text that is no document we take; `problem` says where and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


def read_text(path: Path) -> str:
    """The text of a spec file. Raises Unreadable for what is no file, too large, or not UTF-8."""
    name = str(path)
    try:
        if not path.is_file():
            raise Unreadable(Problem(f"{name} is not a file", file=name))
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(Problem(f"cannot be read: {error.strerror}", file=name)) from error
    if len(raw) > MAX_BYTES:
        raise Unreadable(Problem(f"larger than {MAX_BYTES >> 20} MiB: keep items in a file of their own", file=name))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        message = f"byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8"
        raise Unreadable(Problem(message, file=name, line=line, column=column)) from None


def read_yaml(text: str, file: str | None = None, override: str | None = None) -> tuple[Node, list[Problem]]:
    """The tree of a document, and what is wrong with it that did not stop the reading (duplicate keys, tags).

    Raises Unreadable where nothing can be read beyond a point, or a bound is exceeded.
    """
    return _Reader(text, file, override).read()


@dataclass(slots=True)
class _Weight:
    """What a node costs once its aliases are expanded."""

    nodes: int = 1
    characters: int = 0
    height: int = 1

    def add(self, other: _Weight) -> None:
        self.nodes += other.nodes
        self.characters += other.characters
        self.height = max(self.height, other.height + 1)


@dataclass(slots=True)
class _Frame:
    """A list or mapping whose end has not been read yet."""

    where: Where
    anchor: str | None
    is_mapping: bool
    weight: _Weight = field(default_factory=_Weight)
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Where] = field(default_factory=dict)
    merged: list[Node] = field(default_factory=list)
    key: tuple[str, Where] | None = None
    """The key whose value comes next; its text is `<<` unquoted for a merge."""
    merging: bool = False


class _Reader:
    def __init__(self, text: str, file: str | None, override: str | None) -> None:
        self._text, self._file, self._override = text, file, override
        self._starts = [0, *(found.end() for found in re.finditer(r"\r\n|\n|\r", text))]
        self._problems: list[Problem] = []
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Node, _Weight]] = {}
        self._open_anchors: set[str] = set()
        self._nodes = self._characters = 0
        self._root: Node | None = None

    def read(self) -> tuple[Node, list[Problem]]:
        found = _UNPRINTABLE.search(self._text)
        if found:
            self._fail(f"the character U+{ord(found.group()):04X} has no place in a spec", self._place(found.start()))
        for event in self._events():
            self._take(event)
        if self._root is None:
            self._fail("the file is empty", self._place(0))
        assert self._root is not None
        return self._root, self._problems

    def _events(self) -> Iterator[Any]:
        try:
            yield from yaml.parse(self._text, Loader=_LOADER)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            if error.problem == "found unexpected end of stream" and error.context_mark is not None:
                mark = error.context_mark  # where the quote opens, not where the file ends
            where = self._place(min(mark.index, len(self._text))) if mark else Where(self._file)
            line = self._line(where.line)
            self._fail(explained(error, line), where)
        except yaml.YAMLError as error:
            self._fail(f"not YAML: {error}", Where(self._file))

    def _take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close()
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent) and self._root is not None:
            self._fail("a second document begins here: one file holds one spec", self._of(event))

    def _scalar(self, event: Any) -> None:
        where = self._of(event)
        frame = self._stack[-1] if self._stack else None
        text: str = event.value
        if frame is not None and frame.is_mapping and frame.key is None:
            self._key(frame, text, where, merging=text == "<<" and event.implicit[0])
            return
        value: Scalar = None
        try:
            if event.implicit[0] and event.tag is None:
                value = resolve(text)
            else:
                value = text if event.tag is None else resolve_tagged(event.tag, text)
        except ValueError as error:
            self._problems.append(self._problem(str(error), where))
        if isinstance(value, str) and _UNSTORABLE.search(value):
            self._problems.append(self._problem("NUL and lone surrogates cannot be stored: remove the escape", where))
        node = Node(value, where, literal=event.style == "|")
        self._add(node, _Weight(characters=len(text)), event.anchor)

    def _key(self, frame: _Frame, text: str, where: Where, *, merging: bool) -> None:
        if not merging and text in frame.keys:
            first = frame.keys[text]
            seen = f", first in line {first.line}" if first.line is not None and self._override is None else ""
            self._problems.append(self._problem(f"the key {text!r} stands here twice{seen}: keep one", where))
        frame.key, frame.merging = (text, where), merging
        frame.weight.characters += len(text)

    def _open(self, event: Any) -> None:
        where = self._of(event)
        if event.tag is not None and event.tag not in _CONTAINERS:
            message = f"the tag {shown_tag(event.tag)} is not allowed: a spec is plain data"
            self._problems.append(self._problem(message, where))
        if len(self._stack) >= MAX_DEPTH:
            self._fail(f"nested more than {MAX_DEPTH} deep", where)
        parent = self._stack[-1] if self._stack else None
        if parent is not None and parent.is_mapping and parent.key is None:
            self._fail("a key must be a word: put text that begins with a bracket or brace in quotes", where)
        self._count(1, 0, where)
        if event.anchor is not None:
            self._open_anchors.add(event.anchor)
        self._stack.append(_Frame(where, event.anchor, isinstance(event, yaml.MappingStartEvent)))

    def _close(self) -> None:
        frame = self._stack.pop()
        if not frame.is_mapping:
            node = Node(tuple(frame.items), frame.where)
        else:
            entries, keys = frame.entries, frame.keys
            for merged in frame.merged:  # the first one named wins, and what stands here wins over all
                assert isinstance(merged.value, dict)
                for key, value in merged.value.items():
                    if key not in entries:
                        entries[key], keys[key] = value, merged.keys[key]
            node = Node(entries, frame.where, keys)
        if frame.anchor is not None:
            self._open_anchors.discard(frame.anchor)
        self._add(node, frame.weight, frame.anchor, counted=True)

    def _alias(self, event: Any) -> None:
        where = self._of(event)
        if event.anchor in self._open_anchors:
            self._fail(f"*{event.anchor} stands inside what it refers to", where)
        if event.anchor not in self._anchors:
            self._fail(f"*{event.anchor} refers to nothing: there is no &{event.anchor} above", where)
        frame = self._stack[-1] if self._stack else None
        if frame is not None and frame.is_mapping and frame.key is None:
            self._fail("a key must be a word, not an alias: put text that begins with * in quotes", where)
        node, weight = self._anchors[event.anchor]
        self._count(weight.nodes, weight.characters, where)
        if len(self._stack) + weight.height > MAX_DEPTH + 1:
            self._fail(f"nested more than {MAX_DEPTH} deep", where)
        self._add(node, weight, None, counted=True)

    def _add(self, node: Node, weight: _Weight, anchor: str | None, *, counted: bool = False) -> None:
        """Put a finished node where it belongs."""
        if not counted:
            self._count(weight.nodes, weight.characters, node.where)
        if anchor is not None:
            self._anchors[anchor] = (node, weight)
        if not self._stack:
            self._root = node
            return
        frame = self._stack[-1]
        frame.weight.add(weight)
        if not frame.is_mapping:
            frame.items.append(node)
            return
        assert frame.key is not None
        (key, where), frame.key = frame.key, None
        if frame.merging:
            self._merge(frame, node, where)
        elif key not in frame.entries:
            frame.entries[key], frame.keys[key] = node, where

    def _merge(self, frame: _Frame, node: Node, where: Where) -> None:
        sources = node.value if isinstance(node.value, tuple) else (node,)
        for source in sources:
            if isinstance(source.value, dict):
                frame.merged.append(source)
            else:
                self._problems.append(self._problem("<< takes a mapping, or a list of mappings", where))

    def _count(self, nodes: int, characters: int, where: Where) -> None:
        self._nodes += nodes
        self._characters += characters
        if self._nodes > MAX_NODES:
            self._fail(f"more than {MAX_NODES:,} values, aliases counted as often as they stand", where)
        if self._characters > MAX_CHARACTERS:
            self._fail(f"more than {MAX_CHARACTERS >> 20} MiB of text, aliases counted as often as they stand", where)

    def _of(self, event: Any) -> Where:
        return self._place(event.start_mark.index)

    def _place(self, index: int) -> Where:
        if self._override is not None:
            return Where(override=self._override)
        line = bisect_right(self._starts, index)
        return Where(self._file, line, index - self._starts[line - 1] + 1)

    def _line(self, number: int | None) -> str:
        if number is None or number > len(self._starts):
            return ""
        start = self._starts[number - 1]
        end = self._starts[number] if number < len(self._starts) else len(self._text)
        return self._text[start:end].rstrip("\r\n")

    def _problem(self, message: str, where: Where) -> Problem:
        if self._override is not None:
            message = f"in the override {self._override!r}: {message}"
        return Problem(message, file=where.file, line=where.line, column=where.column)

    def _fail(self, message: str, where: Where) -> None:
        raise Unreadable(self._problem(message, where))
