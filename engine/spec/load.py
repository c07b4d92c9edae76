"""A spec, from its file to a validated experiment, with everything wrong with it said at once.

The steps: read the file and those it extends, lay the overrides over them, merge the dataset's file, then
validate. Functions are read and never run, secrets stay names. Compiling to stages is `engine.plan`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.errors import Problem, SpecError
from engine.spec import signatures
from engine.spec.base import SpecModel
from engine.spec.diagnostics import in_order, placed, problems_of
from engine.spec.experiment import Experiment, experiment_type, inconsistencies
from engine.spec.layers import Layers, overlay
from engine.spec.overrides import layer
from engine.spec.secrets import check_secrets
from engine.spec.sweep import Point, Sweep, read_sweep
from engine.spec.tree import Node, Origin, Where, from_plain, leaves, plain
from engine.spec.upgrade import upgraded


@dataclass(frozen=True)
class Loaded:
    """One experiment, and where it came from."""

    experiment: Experiment
    source: str
    """The text of the spec's own file."""
    resolved: Mapping[str, Any]
    """The whole experiment as JSON data, defaults filled in; secrets stand in it as `${env:NAME}`."""
    files: tuple[Path, ...]
    """Every YAML file that was read, the spec's own first."""
    set_paths: frozenset[str]
    """Dotted paths of what the user wrote, in whichever layer; everything else is a default."""
    origin: Mapping[str, Where]
    """Where each path was written."""
    overrides: tuple[str, ...] = ()
    """What was laid over the file: the command line's, then this variant's point of the sweep."""
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The values of each swept key; empty where nothing is swept."""
    swept: tuple[Loaded, ...] = ()
    """One experiment for each point of the sweep."""

    def variants(self) -> tuple[Loaded, ...]:
        """The experiments to run: those of the sweep, or this one."""
        return self.swept or (self,)


def load(path: Path, overrides: Sequence[str] = (), *, methods: Mapping[str, type[SpecModel]]) -> Loaded:
    """The experiment that the file at `path` describes, under these overrides.

    `methods` are the configs that `algorithm` may be. Raises SpecError with every problem found, each with its
    file, line and column or the override it stands in.
    """
    return _Loading(Path(path), tuple(overrides), methods).run()


def load_resolved(resolved: Mapping[str, Any], methods: Mapping[str, type[SpecModel]]) -> Experiment:
    """The experiment of a stored run. Raises SpecError if this rlx does not understand it."""
    root, problems = upgraded(from_plain(resolved))
    experiment, found = _validated(root, experiment_type(methods))
    if experiment is None or problems or found:
        raise SpecError(in_order([*problems, *found]))
    return experiment


class _Loading:
    def __init__(self, path: Path, overrides: tuple[str, ...], methods: Mapping[str, type[SpecModel]]) -> None:
        self._path, self._overrides = path, overrides
        self._type = experiment_type(methods)
        self._layers = Layers()
        self._checked: dict[str, list[Problem]] = {}

    def run(self) -> Loaded:
        root = self._layers.spec(self._path)
        above, problems = layer(self._overrides)
        if root is None:
            raise SpecError(in_order([*self._layers.problems, *problems]))
        root = overlay(root, above)
        sweep, found = self._sweep(root)
        problems += found
        root = root.without("sweep")
        whole, found = self._build(root, self._overrides)
        problems += found
        swept = []
        for point in sweep.points() if sweep.axes else ():
            variant, found = self._build(overlay(root, point.layer), (*self._overrides, *point.overrides))
            problems += [_in_point(problem, point) for problem in found if problem not in problems]
            swept.append(variant)
        problems = [*self._layers.problems, *problems]
        if whole is None or problems:
            raise SpecError(in_order(problems))
        axes = {key: tuple(plain(value) for value in values) for key, values in sweep.axes}
        return _with_sweep(whole, axes, tuple(variant for variant in swept if variant is not None))

    def _sweep(self, root: Node) -> tuple[Sweep, list[Problem]]:
        block = root.get("sweep")
        return read_sweep(block) if block is not None and block.value is not None else (Sweep(), [])

    def _build(self, root: Node, overrides: tuple[str, ...]) -> tuple[Loaded | None, list[Problem]]:
        """One experiment from one tree, or what is wrong with it."""
        root = self._layers.complete(root)
        written = frozenset(leaves(root))
        root = self._layers.absolute(root)
        root, problems = upgraded(root)
        problems += check_secrets(root)
        problems += self._functions(root)
        experiment, found = _validated(root, self._type, ignore_version=bool(problems))
        problems += found
        if experiment is None or problems:
            return None, problems
        return (
            Loaded(
                experiment=experiment,
                source=next(iter(self._layers.sources.values())),
                resolved=experiment.model_dump(mode="json"),
                files=tuple(self._layers.sources),
                set_paths=written,
                origin=Origin(root),
                overrides=overrides,
            ),
            [],
        )

    def _functions(self, root: Node) -> list[Problem]:
        problems = []
        for name in signatures.ARGUMENTS:
            node = root.at("dataset", name)
            if node is not None and isinstance(node.value, str):
                problems += [
                    placed(finding.message, f"dataset.{name}", self._within(node, finding))
                    for finding in signatures.check_source(name, node.value)
                ]
        return problems

    def _within(self, node: Node, finding: signatures.Finding) -> Where:
        """Where in the file a place in a function's source is; the function itself where lines do not correspond."""
        where = node.where
        if not node.literal or where.file is None or where.line is None:
            return where
        number = where.line + finding.line
        written = self._layers.sources[Path(where.file)].splitlines()[number - 1 : number]
        source = str(node.value).splitlines()[finding.line - 1 : finding.line]
        indent = len(written[0]) - len(source[0]) if written and source and written[0].endswith(source[0]) else 0
        return Where(where.file, number, indent + finding.column)


def _validated(
    root: Node, model: type[Experiment], *, ignore_version: bool = False
) -> tuple[Experiment | None, list[Problem]]:
    try:
        # As JSON, since strict validation then still takes a list for a tuple.
        experiment = model.model_validate_json(json.dumps(plain(root)))
    except ValidationError as error:
        found = problems_of(error, root, model)
        return None, [p for p in found if not _known(p, ignore_version)]
    places = Origin(root)
    return experiment, [
        placed(message, path, _closest(places, path) or root.where) for path, message in inconsistencies(experiment)
    ]


def _known(problem: Problem, version_was_refused: bool) -> bool:
    return version_was_refused and problem.path == "version"


def _closest(places: Mapping[str, Where], path: str) -> Where | None:
    """The place of a path, or of the nearest block around it that was written."""
    while path:
        if path in places:
            return places[path]
        path = path.rpartition(".")[0]
    return None


def _in_point(problem: Problem, point: Point) -> Problem:
    from dataclasses import replace

    return replace(problem, message=f"with {' '.join(point.overrides)}: {problem.message}")


def _with_sweep(whole: Loaded, axes: Mapping[str, tuple[Any, ...]], swept: tuple[Loaded, ...]) -> Loaded:
    from dataclasses import replace

    return replace(whole, sweep=axes, swept=swept) if axes else whole
