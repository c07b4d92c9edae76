"""The spec as JSON Schema, in the draft-07 dialect that YAML editors complete and check from.

It describes the file that a user writes: with the shorthands, `extends`, `sweep` and the dataset's own file,
which the loader resolves before validation. What only code can check (functions, slots, data) it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.spec.base import SpecModel
from engine.spec.experiment import experiment_type
from engine.spec.help import WithHelp
from engine.spec.sampler import KINDS

DIALECT = "http://json-schema.org/draft-07/schema#"
_OPENAPI = ("discriminator",)
"""Keywords that pydantic adds and draft-07 does not have."""


def json_schema(methods: Mapping[str, type[SpecModel]]) -> dict[str, Any]:
    """The schema of a spec file whose `algorithm` is one of these configs."""
    raw = experiment_type(methods).model_json_schema(ref_template="#/definitions/{model}", schema_generator=WithHelp)
    schema: dict[str, Any] = _draft7(raw)
    schema["$schema"] = DIALECT
    schema["title"] = "rlx experiment"
    definitions, properties = schema["definitions"], schema["properties"]
    _algorithm(properties["algorithm"], methods)
    _dataset(definitions["Dataset"])
    _word_or(properties, "dataset", "A recurve dataset file, relative to this spec.")
    _word_or(properties, "model", "The model's name, with the defaults for everything else.")
    sampler = definitions["Model"]["properties"]["sampler"]
    _word_or(definitions["Model"]["properties"], "sampler", "Its kind, with the defaults for everything else.")
    sampler["anyOf"][1]["enum"] = list(KINDS)
    properties["extends"] = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
        "description": "Specs that this one is laid over, relative to this file; of several, the last one wins.",
    }
    properties["sweep"] = {"anyOf": [{"$ref": "#/definitions/Sweep"}, {"type": "null"}]}
    definitions["Sweep"] = _SWEEP
    _require_unless_extending(schema)
    return schema


_SWEEP: Mapping[str, Any] = {
    "type": "object",
    "title": "Sweep",
    "description": "Several runs from one spec: every combination of the values.",
    "additionalProperties": False,
    "required": ["grid"],
    "properties": {
        "grid": {
            "type": "object",
            "description": "Dotted paths and their values, such as `algorithm.iterations: [20, 60]`.",
            "additionalProperties": {"type": "array", "minItems": 1},
            "minProperties": 1,
        }
    },
}


def _draft7(node: Any) -> Any:
    """A schema of the 2020-12 dialect in draft-07's words."""
    if isinstance(node, list):
        return [_draft7(child) for child in node]
    if not isinstance(node, dict):
        return node
    converted: dict[str, Any] = {}
    for key, value in node.items():
        if key in ("properties", "$defs", "patternProperties"):  # their keys are names, not keywords
            converted["definitions" if key == "$defs" else key] = {
                name: _draft7(child) for name, child in value.items()
            }
        elif key == "prefixItems":
            converted["items"] = _draft7(value)
        elif key in ("default", "const", "enum", "examples"):
            converted[key] = value
        elif key not in _OPENAPI:
            converted[key] = _draft7(value)
    if "$ref" in converted and len(converted) > 1:  # draft-07 ignores whatever stands beside a $ref
        converted = {"allOf": [{"$ref": converted.pop("$ref")}], **converted}
    return converted


def _algorithm(prop: dict[str, Any], methods: Mapping[str, type[SpecModel]]) -> None:
    blocks = prop.pop("oneOf", None) or [{"$ref": prop.pop("$ref")} if "$ref" in prop else prop.pop("allOf")[0]]
    word = {"enum": sorted(methods), "description": "The method's name, with the defaults for everything else."}
    # anyOf: a block that extends another may leave its name out, and then fits several.
    prop["anyOf"] = [*blocks, word]


def _dataset(definition: dict[str, Any]) -> None:
    definition["properties"] = {
        "file": {
            "type": "string",
            "description": "A recurve dataset file, relative to this spec; what stands beside it here wins.",
        },
        **definition["properties"],
    }


def _word_or(properties: dict[str, Any], name: str, description: str) -> None:
    prop = properties[name]
    block = prop.pop("allOf")[0] if "allOf" in prop else {"$ref": prop.pop("$ref")}
    prop["anyOf"] = [block, {"type": "string", "minLength": 1, "description": description}]


def _require_unless_extending(schema: dict[str, Any]) -> None:
    """Move what must be there into a condition: a spec that extends another may say only what it changes."""
    definitions = schema["definitions"]
    for name in ("Dataset", "Model"):
        definitions[name].pop("required", None)
    complete = {
        "dataset": {"anyOf": [{"required": ["items"]}, {"required": ["file"]}]},
        "algorithm": {"required": ["name"]},
        "model": {"required": ["name"]},
    }
    schema["if"] = {"not": {"required": ["extends"]}}
    schema["then"] = {
        "required": schema.pop("required"),
        "properties": {block: {"if": {"type": "object"}, "then": then} for block, then in complete.items()},
    }
