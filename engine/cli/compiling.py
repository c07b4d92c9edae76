"""From a file and overrides to plans: what `validate`, `plan`, `submit` and `eval` have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import NotFound, Problem, SpecError

if TYPE_CHECKING:
    from engine.plan.stage import Plan
    from engine.spec.base import SpecModel
    from engine.spec.load import Loaded


@dataclass(frozen=True)
class Compiled:
    """One variant of a spec and its plan."""

    loaded: Loaded
    plan: Plan
    overrides: tuple[str, ...]


def compiled(path: Path, overrides: Sequence[str], *, tiny: bool = False) -> list[Compiled]:
    """Every variant that the file and the overrides ask for, in order; one, unless they sweep.

    Raises SpecError with every problem found.
    """
    from engine.methods import registry
    from engine.spec.load import load
    from engine.spec.overrides import expand

    variants: list[Compiled] = []
    for chosen in expand(list(overrides)):
        for loaded in load(path, chosen, methods=registry.configs()).variants():
            variants.append(compile_loaded(loaded, tiny=tiny, overrides=chosen))
    return variants


def compile_loaded(loaded: Loaded, *, tiny: bool = False, overrides: Sequence[str] = ()) -> Compiled:
    """The plan of one loaded spec, or of its tiny twin."""
    from engine.methods import registry

    chosen = loaded
    if tiny:
        from engine.methods.tiny import twin

        chosen = twin(loaded)
    try:
        plan = registry.plan(chosen.experiment, frozenset(loaded.set_paths))
    except SpecError as error:
        raise SpecError([located(problem, loaded.origin) for problem in error.problems]) from error
    return Compiled(loaded=chosen, plan=plan, overrides=tuple(overrides))


def located(problem: Problem, origin: Mapping[str, Any]) -> Problem:
    """`problem` with the place where the user wrote the field that it is about."""
    where = origin.get(problem.path)
    if problem.line is not None or where is None:
        return problem
    return replace(problem, file=where.file, line=where.line, column=where.column)


def method_config(name: str) -> type[SpecModel]:
    """What `algorithm` may say for the method `name`. Raises NotFound with the closest one."""
    import difflib

    from engine.methods.registry import configs

    known = configs()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    raise NotFound(f"no method is called {name!r}. {hint}There are {', '.join(sorted(known))}.")
