"""What the models allow at a place of a spec: which keys, whether null, and where else a key belongs.

Diagnostics ask this to suggest the key or the value that was meant.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

_NoneType = type(None)


@dataclass(frozen=True)
class Shape:
    """The models that may stand at a place, and whether null may."""

    models: tuple[type[BaseModel], ...]
    nullable: bool = False

    @classmethod
    def of(cls, annotation: Any) -> Shape:
        """The shape of an annotation. Lists and mappings have the shape of what they hold."""
        return cls(tuple(dict.fromkeys(_models(annotation))), _nullable(annotation))

    def step(self, key: str) -> Shape:
        """The shape below a key: a field's, or, where no model has that field, this one's own content."""
        fields = [model.model_fields[key] for model in self.models if key in model.model_fields]
        if not fields:
            return Shape(self.models)
        shapes = [Shape.of(field.annotation) for field in fields]
        models = dict.fromkeys(model for shape in shapes for model in shape.models)
        return Shape(tuple(models), any(shape.nullable for shape in shapes))

    def tagged(self, tag: str) -> Shape | None:
        """The one model whose `name` is `tag`, if there are such models here."""
        chosen = tuple(model for model in self.models if tag in names_of(model))
        return Shape(chosen) if chosen else None

    def keys(self) -> list[str]:
        """Every key that may stand here."""
        return list(dict.fromkeys(key for model in self.models for key in model.model_fields))


def names_of(model: type[BaseModel]) -> tuple[str, ...]:
    """What a model's `name` may be, where that tells it from others."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def places_of(
    key: str, models: Iterable[type[BaseModel]], chosen: str, prefix: str = "", depth: int = 6
) -> Iterator[str]:
    """Dotted paths at which `key` is a field, below these models; of several named ones only below `chosen`."""
    if depth == 0:
        return
    for model in models:
        for name, field in model.model_fields.items():
            path = f"{prefix}.{name}" if prefix else name
            if name == key:
                yield path
            shape = Shape.of(field.annotation)
            shape = (shape.tagged(chosen) or shape) if len(shape.models) > 1 else shape
            yield from places_of(key, shape.models, chosen, path, depth - 1)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    if get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])
        return
    for argument in get_args(annotation):
        yield from _models(argument)


def _nullable(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _nullable(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return any(_nullable(argument) for argument in get_args(annotation))
    return annotation is _NoneType
