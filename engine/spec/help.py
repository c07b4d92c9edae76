"""What the docstring below a field says: the user's help, in schemas and beside the keys of a method.

It is read from the source where somebody asks for it. Pydantic would do so whenever a model is defined, which is an
eighth of what `rlx validate` takes.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from engine.spec.base import SpecModel


def field_help(model: type[SpecModel]) -> dict[str, str]:
    """The help on each field of `model` that has any, inherited ones included."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, SpecModel):
            found |= _docstrings(base)
    return {name: text for name, text in found.items() if name in model.model_fields}


@cache
def _docstrings(model: type[SpecModel]) -> dict[str, str]:
    statement = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    assert isinstance(statement, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(statement.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }


class WithHelp(GenerateJsonSchema):
    """JSON Schema whose properties are described by their docstrings: for `model_json_schema(schema_generator=…)`."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        generated = super().model_schema(schema)
        for name, text in field_help(schema["cls"]).items():
            if text != inspect.getdoc(schema["cls"].model_fields[name].annotation):  # else its block says so itself
                generated["properties"][name].setdefault("description", text)
        return generated
