"""What a YAML file says, as an immutable tree whose every value knows where it was written.

Trees are merged before anything is validated, so a message about a value names the file, line and column it
came from, whichever layer that was. Reading text into a tree is `reader`'s, judging it the models'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

Scalar: TypeAlias = bool | int | float | str | None


class Where(NamedTuple):
    """Where something was written: a file's line and column, from 1, or an override."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    override: str | None = None


NOWHERE = Where()


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value of a document. Aliased nodes are shared, never copied."""

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    where: Where = NOWHERE
    keys: Mapping[str, Where] = field(default_factory=dict)
    """For a mapping: where each key stands."""
    literal: bool = False
    """For text: whether it is a literal block (`|`), whose lines are the file's lines."""

    def get(self, key: str) -> Node | None:
        """The value under `key`, if this is a mapping that has it."""
        return self.value.get(key) if isinstance(self.value, Mapping) else None

    def child(self, key: str | int) -> Node | None:
        """The value under a key or at an index; text that is a number serves as an index."""
        if isinstance(self.value, Mapping):
            return self.value.get(str(key))
        if isinstance(self.value, tuple) and (isinstance(key, int) or key.isdecimal()):
            index = int(key)
            return self.value[index] if index < len(self.value) else None
        return None

    def at(self, *path: str | int) -> Node | None:
        """The value at the end of a path."""
        node: Node | None = self
        for key in path:
            if node is None:
                return None
            node = node.child(key)
        return node

    def with_key(self, key: str, value: Node, where: Where | None = None) -> Node:
        """This mapping with one key set."""
        assert isinstance(self.value, Mapping)
        keys = self.keys if where is None and key in self.keys else {**self.keys, key: where or value.where}
        return Node({**self.value, key: value}, self.where, keys)

    def without(self, *names: str) -> Node:
        """This mapping without some keys."""
        if not isinstance(self.value, Mapping):
            return self
        left = {key: value for key, value in self.value.items() if key not in names}
        return Node(left, self.where, {key: self.keys[key] for key in left})


def plain(node: Node) -> Any:
    """The bare data of a tree."""
    value = node.value
    if isinstance(value, Mapping):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, tuple):
        return [plain(child) for child in value]
    return value


def from_plain(data: Any, where: Where = NOWHERE) -> Node:
    """A tree of bare data, all of it from one place."""
    if isinstance(data, Mapping):
        children = {str(key): from_plain(value, where) for key, value in data.items()}
        return Node(children, where, dict.fromkeys(children, where))
    if isinstance(data, list | tuple):
        return Node(tuple(from_plain(value, where) for value in data), where)
    return Node(data, where)


def merge(below: Node, above: Node, path: tuple[str, ...] = ()) -> Node:
    """`above` laid over `below`: mappings are merged key by key, everything else is replaced.

    An algorithm of another name starts afresh, since the settings below belong to a different method. An
    override reaches into a list by index.
    """
    if not isinstance(above.value, Mapping) or (path == ("algorithm",) and _another(below, above)):
        return above
    if isinstance(below.value, tuple) and above.where.override is not None and above.value:
        return _into_list(below, above, path)
    if not isinstance(below.value, Mapping):
        return above
    values, keys = dict(below.value), dict(below.keys)
    for key, value in above.value.items():
        if key not in values:
            values[key], keys[key] = value, above.keys[key]
            continue
        values[key] = merge(values[key], value, (*path, key))
        if above.where.override is None or not isinstance(value.value, Mapping):
            keys[key] = above.keys[key]
    # A block stays where a file has it, even if an override reaches into it.
    return Node(values, below.where if above.where.override is not None else above.where, keys)


def _another(below: Node, above: Node) -> bool:
    old, new = below.get("name"), above.get("name")
    return old is not None and new is not None and old.value != new.value


def _into_list(below: Node, above: Node, path: tuple[str, ...]) -> Node:
    assert isinstance(below.value, tuple)
    assert isinstance(above.value, Mapping)
    items = list(below.value)
    for key, value in above.value.items():
        if not key.isdecimal() or int(key) >= len(items):
            return above  # refused by the models: this is no list
        items[int(key)] = merge(items[int(key)], value, (*path, key))
    return Node(tuple(items), below.where)


def leaves(node: Node, path: str = "") -> Iterator[str]:
    """Dotted paths of everything that a tree sets. A list counts as one value."""
    if isinstance(node.value, Mapping) and node.value:
        for key, child in node.value.items():
            yield from leaves(child, f"{path}.{key}" if path else key)
    elif path:
        yield path


class Origin(Mapping[str, Where]):
    """Where each dotted path was written; a key's place rather than its value's, where it has one."""

    def __init__(self, root: Node) -> None:
        self._root = root

    def __getitem__(self, path: str) -> Where:
        *parents, last = path.split(".")
        parent = self._root.at(*parents)
        node = None if parent is None else parent.child(last)
        if parent is None or node is None:
            raise KeyError(path)
        return parent.keys.get(last, node.where)

    def __iter__(self) -> Iterator[str]:
        return self._paths(self._root, "")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _paths(self, node: Node, prefix: str) -> Iterator[str]:
        if isinstance(node.value, Mapping):
            children: Any = node.value.items()
        elif isinstance(node.value, tuple):
            children = enumerate(node.value)
        else:
            return
        for key, child in children:
            path = f"{prefix}.{key}" if prefix else str(key)
            yield path
            yield from self._paths(child, path)
