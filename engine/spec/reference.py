"""The reference of the spec as Markdown, from its JSON Schema: every key with its type, default and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_PREFIX = "#/definitions/"
_INTRODUCTION = """\
# The spec, key by key

Made from the schema by `rlx schema --markdown`; do not edit it by hand. An experiment is one YAML file. Unknown
keys are errors. Empty (`null`) means "no limit" or "none" where a key allows it; there are no other sentinels.
"""


def reference_markdown(schema: Mapping[str, Any]) -> str:
    """A page with one section for the experiment and one for each block, in the order in which they are met."""
    definitions: Mapping[str, Any] = schema.get("definitions", {})
    parts = [_INTRODUCTION, _section("Experiment", "The top level of the file.", schema, definitions)]
    for name in _reachable(schema, definitions):
        block = definitions[name]
        parts.append(_section(name, str(block.get("description", "")), block, definitions))
    return "\n".join(parts)


def _section(name: str, about: str, block: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    lines = [
        f"## {name}",
        "",
        " ".join(about.split()),
        "",
        "| key | type | default | meaning |",
        "| --- | --- | --- | --- |",
    ]
    required = {*block.get("required", ()), *block.get("then", {}).get("required", ())}
    for key, prop in block.get("properties", {}).items():
        kind = " or ".join(dict.fromkeys(_types(prop, definitions)))
        meaning = " ".join(_meaning(prop, definitions).split())
        cells = (f"`{key}`", kind, _default(key, prop, required), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join((*lines, ""))


def _meaning(prop: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The key's own description, or else its block's: pydantic leaves out one that repeats the other."""
    if "description" in prop:
        return str(prop["description"])
    names = [name for name in _references(prop) if name in definitions]
    return str(definitions[names[0]].get("description", "")) if len(names) == 1 else ""


def _default(key: str, prop: Mapping[str, Any], required: set[str]) -> str:
    if key in required:
        return "required"
    if "default" not in prop:
        return ""
    value = prop["default"]
    if isinstance(value, dict) and value:
        return "its defaults"
    return "empty" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _types(prop: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    """What a property may be, in words."""
    for part in ("anyOf", "oneOf", "allOf"):
        for alternative in prop.get(part, ()):
            yield from _types(alternative, definitions)
    if "$ref" in prop:
        name = prop["$ref"].removeprefix(_PREFIX)
        yield f"[{name}](#{name.lower()})" if "properties" in definitions.get(name, {}) else "any value"
    elif "const" in prop:
        yield f"`{prop['const']}`"
    elif "enum" in prop:
        yield ", ".join(f"`{value}`" for value in prop["enum"])
    elif prop.get("type") == "array":
        inner = " or ".join(dict.fromkeys(_types(prop.get("items", {}), definitions))) or "any value"
        yield f"list of {inner}"
    elif prop.get("type") == "object":
        values = prop.get("additionalProperties")
        inner = " or ".join(dict.fromkeys(_types(values, definitions))) if isinstance(values, dict) else ""
        yield f"block of {inner or 'any value'}"
    elif "type" in prop:
        yield _WORDS.get(prop["type"], str(prop["type"])) + _bounds(prop)
    elif not any(part in prop for part in ("anyOf", "oneOf", "allOf")):
        yield "any value"


_WORDS = {"integer": "whole number", "string": "text", "boolean": "true or false", "null": "empty"}


def _bounds(prop: Mapping[str, Any]) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {prop[key]:g}" for key, sign in signs if key in prop and abs(prop[key]) < 2**62]
    return f" {', '.join(bounds)}" if bounds else ""


def _reachable(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """Names of the blocks below a schema, each once, breadth first."""
    seen: dict[str, None] = {}
    queue: list[Any] = [schema.get("properties", {})]
    while queue:
        for name in _references(queue.pop(0)):
            if name not in seen and name in definitions:
                seen[name] = None
                queue.append(definitions[name])
    return [name for name in seen if "properties" in definitions[name]]


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].removeprefix(_PREFIX)
        for child in node.values():
            yield from _references(child)
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)
