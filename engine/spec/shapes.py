"""What the models allow at a place of a spec: which keys, whether null, and where else a key belongs.

Diagnostics ask this to suggest the key or the value that was meant.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Tag

_NoneType = type(None)


@dataclass(frozen=True)
class Shape:
    """The models that may stand at a place, and whether null may."""

    models: tuple[type[BaseModel], ...]
    nullable: bool = False
    tags: Mapping[type[BaseModel], str] = field(default_factory=dict)
    """What the validator calls the branch of a union that leads to a model."""

    @classmethod
    def of(cls, annotation: Any) -> Shape:
        """The shape of an annotation. Lists and mappings have the shape of what they hold."""
        found = dict(_models(annotation, ""))
        return cls(tuple(found), _nullable(annotation), {model: tag for model, tag in found.items() if tag})

    def step(self, key: str) -> Shape:
        """The shape below a key: a field's, or, where no model has that field, this one's own content."""
        fields = [model.model_fields[key] for model in self.models if key in model.model_fields]
        if not fields:
            return Shape(self.models, tags=self.tags)
        shapes = [Shape.of(info.annotation) for info in fields]
        models = dict.fromkeys(model for shape in shapes for model in shape.models)
        tags = {model: tag for shape in shapes for model, tag in shape.tags.items()}
        return Shape(tuple(models), any(shape.nullable for shape in shapes), tags)

    def tagged(self, tag: str) -> Shape | None:
        """The models of the union's branch that is called `tag`, or whose `name` or `kind` is; None where none is."""
        chosen = tuple(model for model in self.models if tag in (*names_of(model), self.tags.get(model)))
        return Shape(chosen) if chosen else None

    def keys(self) -> list[str]:
        """Every key that may stand here."""
        return list(dict.fromkeys(key for model in self.models for key in model.model_fields))


def names_of(model: type[BaseModel]) -> tuple[str, ...]:
    """What a model's `name` (or `kind`) may be, where that tells it from others."""
    for key in ("name", "kind"):
        field = model.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return get_args(field.annotation)
    return ()


def places_of(
    key: str, models: Iterable[type[BaseModel]], chosen: str, prefix: str = "", depth: int = 6
) -> Iterator[str]:
    """Dotted paths at which `key` is a field, below these models; of several named ones only below `chosen`."""
    if depth == 0:
        return
    for model in models:
        for name, info in model.model_fields.items():
            path = f"{prefix}.{name}" if prefix else name
            if name == key:
                yield path
            shape = Shape.of(info.annotation)
            shape = (shape.tagged(chosen) or shape) if len(shape.models) > 1 else shape
            yield from places_of(key, shape.models, chosen, path, depth - 1)


def _models(annotation: Any, tag: str) -> Iterator[tuple[type[BaseModel], str]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, tag
        return
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        yield from _models(inner, next((m.tag for m in metadata if isinstance(m, Tag)), tag))
        return
    for argument in get_args(annotation):
        yield from _models(argument, tag)


def _nullable(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _nullable(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return any(_nullable(argument) for argument in get_args(annotation))
    return annotation is _NoneType
