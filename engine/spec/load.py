"""A spec, from its file to a validated experiment, with everything wrong with it said at once.

The steps: read the file and those it extends, lay the overrides over them, merge the dataset's file, then
validate. Functions are read and never run, secrets stay names. Compiling to stages is `engine.plan`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from engine.errors import Problem, SpecError
from engine.spec import signatures
from engine.spec.base import SpecModel
from engine.spec.diagnostics import in_order, meant_tag, placed, problems_of
from engine.spec.experiment import Experiment, experiment_type, inconsistencies
from engine.spec.layers import Layers, overlay
from engine.spec.overrides import layer
from engine.spec.secrets import check_secrets
from engine.spec.sweep import Sweep, read_sweep
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
    """What was laid over the files: the command line's overrides, then this variant's point of the sweep."""
    sweep: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The values of each swept key; empty where nothing is swept."""
    swept: tuple[Loaded, ...] = ()
    """One experiment for each point of the sweep; this one is the first of them."""

    def variants(self) -> tuple[Loaded, ...]:
        """The experiments to run: those of the sweep, or this one."""
        return self.swept or (self,)


def load(path: Path, overrides: Sequence[str] = (), *, methods: Mapping[str, type[SpecModel]]) -> Loaded:
    """The experiment that the file at `path` describes, under these overrides.

    `methods` are the configs that `algorithm` may be. Raises SpecError with every problem found, each with its
    file, line and column, or the override it stands in.
    """
    return _Loading(Path(path), tuple(overrides), methods).run()


def load_resolved(resolved: Mapping[str, Any], methods: Mapping[str, type[SpecModel]]) -> Experiment:
    """The experiment of a stored run. Raises SpecError if this rlx does not understand it."""
    root, problems = upgraded(from_plain(resolved))
    experiment, found = _validated(root, experiment_type(methods))
    if experiment is None or problems:
        raise SpecError(in_order(problems or found))
    return experiment


class _Loading:
    """One call of `load`."""

    def __init__(self, path: Path, overrides: tuple[str, ...], methods: Mapping[str, type[SpecModel]]) -> None:
        self._path, self._overrides = path, overrides
        self._type = experiment_type(methods)
        self._layers = Layers()

    def run(self) -> Loaded:
        root = self._layers.spec(self._path)
        above, problems = layer(self._overrides)
        if root is None:
            raise SpecError(in_order([*self._layers.problems, *problems]))
        root = overlay(root, above)
        sweep, found = self._sweep(root)
        problems += found
        root = root.without("sweep")
        points = list(sweep.points())
        built = [self._build(overlay(root, point.layer), (*self._overrides, *point.overrides)) for point in points]
        problems += _attributed([found for _, found in built], [" ".join(point.overrides) for point in points])
        problems = in_order([*self._layers.problems, *problems])
        if problems:
            raise SpecError(problems)
        variants = tuple(loaded for loaded, _ in built if loaded is not None)
        if not sweep.axes:
            return variants[0]
        axes = {key: tuple(plain(value) for value in values) for key, values in sweep.axes}
        return replace(variants[0], sweep=axes, swept=variants)

    def _sweep(self, root: Node) -> tuple[Sweep, list[Problem]]:
        block = root.get("sweep")
        return read_sweep(block) if block is not None and block.value is not None else (Sweep(), [])

    def _build(self, root: Node, overrides: tuple[str, ...]) -> tuple[Loaded | None, list[Problem]]:
        """One experiment from one tree, or what is wrong with it."""
        root = self._layers.complete(root)
        written = frozenset(leaves(root))
        root, problems = upgraded(self._layers.absolute(root))
        if self._layers.incomplete and root.get("version") is None:
            problems = []  # it may stand in the layer that could not be read
        problems += [*check_secrets(root), *self._functions(root)]
        experiment, found = _validated(root, self._type, incomplete=self._layers.incomplete)
        # An absent or wrong version was already reported, and better.
        problems += [problem for problem in found if problem.path != "version"]
        if experiment is None or problems:
            return None, problems
        loaded = Loaded(
            experiment=experiment,
            source=next(iter(self._layers.sources.values())),
            resolved=experiment.model_dump(mode="json"),
            files=tuple(self._layers.sources),
            set_paths=written,
            origin=Origin(root),
            overrides=overrides,
        )
        return loaded, []

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
    root: Node, model: type[Experiment], *, incomplete: bool = False
) -> tuple[Experiment | None, list[Problem]]:
    """The experiment, unless there are problems."""
    try:
        # As JSON, since strict validation then still takes a list for a tuple.
        experiment = model.model_validate_json(json.dumps(plain(root)))
    except ValidationError as error:
        problems = problems_of(error, root, model, incomplete=incomplete)
        if meant := meant_tag(error):  # judge the rest of the block as what was meant
            block, key, tag = meant
            problems += [
                problem
                for problem in _validated(_with_tag(root, block, key, tag), model, incomplete=incomplete)[1]
                if problem.path.startswith(f"{block}.")
            ]
        return None, problems
    if incomplete:
        return experiment, []
    places = Origin(root)
    problems = [placed(text, path, _nearest(places, path) or root.where) for path, text in inconsistencies(experiment)]
    return (None if problems else experiment), problems


def _with_tag(root: Node, block: str, key: str, tag: str) -> Node:
    node = root.get(block)
    return root if node is None else root.with_key(block, node.with_key(key, Node(tag, node.where)))


def _nearest(places: Mapping[str, Where], path: str) -> Where | None:
    """The place of a path, or of the nearest block around it that was written."""
    while path:
        if path in places:
            return places[path]
        path = path.rpartition(".")[0]
    return None


def _attributed(found: Sequence[Sequence[Problem]], names: Sequence[str]) -> list[Problem]:
    """The problems of several variants: those of all of them once, the others with the variant's name."""
    everywhere = [problem for problem in found[0] if all(problem in others for others in found)]
    problems = list(everywhere)
    for own, name in zip(found, names, strict=True):
        problems += [replace(p, message=f"with {name}: {p.message}") for p in own if p not in everywhere]
    return problems
