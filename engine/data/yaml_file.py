"""YAML: one list of mappings, or a mapping whose `items` is one.

Data, not a program: no tags, no anchors (an alias bomb cannot be written), and as in YAML 1.2 only `true` and
`false` are booleans, and a date is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from engine.data.rows import Row, decoded, rows_of_document
from engine.errors import DataError


class _Loader(yaml.SafeLoader):
    """Plain data only."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # its stub has no types
            raise yaml.MarkedYAMLError(problem="aliases are not read in data files", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_BOOLEAN, _DATE = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOLEAN, _DATE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def read(content: bytes, name: str) -> Iterator[Row]:
    """Rows are numbered from 1 in the list's order."""
    text = decoded(content, name)
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise DataError(f"{place}: not YAML that we read: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{name}: not YAML that we read: {error}") from None
    yield from rows_of_document(document, name)
