"""From a file and overrides to plans: what `validate`, `plan`, `submit` and `eval` have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import NotFound, Problem, SpecError

if TYPE_CHECKING:
    from engine.plan.stage import Plan
    from engine.spec.base import SpecModel
    from engine.spec.load import Loaded
    from engine.spec.tree import Where


@dataclass(frozen=True)
class Compiled:
    """One variant of a spec and its plan."""

    loaded: Loaded
    plan: Plan
    base: Mapping[str, Any] | None = None
    """The resolved spec without overrides, by which revisions are told apart; None where it is no spec without them."""


def compiled(path: Path, overrides: Sequence[str], *, tiny: bool = False) -> list[Compiled]:
    """Every variant that the file and the overrides ask for, in order; one, unless they sweep.

    Raises SpecError with every problem found.
    """
    from engine.methods.registry import configs
    from engine.spec.load import load
    from engine.spec.overrides import expand

    chosen = [load(path, some, methods=configs()) for some in expand(list(overrides))]
    base = _base(path, chosen[0], tiny=tiny)
    return [compile_loaded(variant, tiny=tiny, base=base) for loaded in chosen for variant in loaded.variants()]


def compile_loaded(loaded: Loaded, *, tiny: bool = False, base: Mapping[str, Any] | None = None) -> Compiled:
    """The plan of one loaded spec, or of its tiny twin."""
    from engine.methods import registry

    sized = _sized(loaded, tiny)
    try:
        registry.plan(loaded.experiment, frozenset(loaded.set_paths))
        plan = registry.plan(sized.experiment)
    except SpecError as error:
        raise SpecError([located(problem, loaded.origin) for problem in error.problems]) from error
    return Compiled(loaded=sized, plan=plan, base=base)


def located(problem: Problem, origin: Mapping[str, Where]) -> Problem:
    """`problem` with the place where the user wrote the field that it is about."""
    from engine.spec.diagnostics import placed

    where = origin.get(problem.path)
    if problem.line is not None or where is None:
        return problem
    return placed(problem.message, problem.path, where)


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


def _base(path: Path, loaded: Loaded, *, tiny: bool) -> Mapping[str, Any] | None:
    from engine.methods.registry import configs
    from engine.spec.load import load

    if not loaded.overrides:
        return _sized(loaded, tiny).resolved
    try:
        return _sized(load(path, methods=configs()), tiny).resolved
    except SpecError:
        return None


def _sized(loaded: Loaded, tiny: bool) -> Loaded:
    if not tiny:
        return loaded
    from engine.methods.tiny import twin

    return twin(loaded)
