"""Commands that start quickly: only the one that is named is built, and plain texts are taken as they are.

Typer builds every command before it runs one, and converts every parameter through pydantic, whose import alone costs
more than `rlx ls` may spend on top of the database. What does need converting (numbers, paths, choices) still goes
typer's way.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class QuickTyper(typer.Typer):
    """An application that builds the command that a line begins with; all of them where it begins with none."""

    def __call__(self, argv: Sequence[str], **options: Any) -> Any:
        first = argv[0] if argv else ""
        commands = [info for info in self.registered_commands if info.name == first]
        groups = [info for info in self.registered_groups if info.name == first]
        chosen: typer.Typer = self
        if commands or groups:
            chosen = copy(self)
            chosen.registered_commands, chosen.registered_groups = commands, groups
        return typer.Typer.__call__(chosen, argv, **options)


class QuickCommand(TyperCommand):
    """A command whose parameters are converted only where there is something to convert."""

    def get_params(self, ctx: Any) -> list[Any]:
        return quickened(super().get_params(ctx))


class QuickGroup(TyperGroup):
    """The same for the options of a group."""

    def get_params(self, ctx: Any) -> list[Any]:
        return quickened(super().get_params(ctx))


class _Quick:
    """Stands before typer's conversion of one parameter."""

    def __init__(self, thorough: Callable[[], Any], text: bool) -> None:
        self._thorough, self._text = thorough, text

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if self._text and isinstance(value, str):
            return value
        if type(value) in (int, bool) and value is param.default:
            return value
        return self._thorough().coerce(value, param=param, ctx=ctx)


def quickened(parameters: list[Any]) -> list[Any]:
    """The parameters, each with the short cut before its conversion; those that are not typer's have none."""
    for parameter in parameters:
        descriptor = getattr(parameter, "type_descriptor", None)
        if descriptor is not None and "get_runtime_param" not in vars(parameter):
            _put_before(parameter, descriptor.annotation)
    return parameters


def _put_before(parameter: Any, annotation: Any) -> None:
    text = annotation is str or set(get_args(annotation)) == {str, type(None)}
    quick = _Quick(parameter.get_runtime_param, text)
    parameter.get_runtime_param = lambda: quick
