"""The `sweep:` block: every combination of a grid of values, each a spec of its own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from engine.errors import Problem
from engine.spec.overrides import MAX_VARIANTS, assign
from engine.spec.tree import Node, Where, plain

_SWEEP = Where(override="sweep")


@dataclass(frozen=True)
class Point:
    """One combination: the tree that it lays over the spec, and how one would write it as overrides."""

    layer: Node
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """The values of each swept key."""

    axes: tuple[tuple[str, tuple[Node, ...]], ...] = ()

    def points(self) -> Iterator[Point]:
        """Every combination, the last key varying fastest."""
        for values in itertools.product(*(values for _, values in self.axes)):
            layer = Node({}, _SWEEP)
            written = []
            for (path, _), value in zip(self.axes, values, strict=True):
                layer = assign(layer, path.split("."), value, _SWEEP)
                written.append(f"{path}={json.dumps(plain(value), ensure_ascii=False)}")
            yield Point(layer, tuple(written))


def read_sweep(block: Node) -> tuple[Sweep, list[Problem]]:
    """The sweep that a block asks for, and what is wrong with it."""
    if not isinstance(block.value, dict):
        return Sweep(), [_problem("sweep must be a block with a `grid`", "sweep", block.where)]
    problems = [
        _problem(f"sweep.{key} is not a key of a sweep, which has a `grid` and nothing else", f"sweep.{key}", where)
        for key, where in block.keys.items()
        if key != "grid"
    ]
    grid = block.get("grid")
    if grid is None or not isinstance(grid.value, dict) or not grid.value:
        place = block.where if grid is None else grid.where
        problems.append(
            _problem("sweep.grid must map keys to lists of values, as in `seed: [0, 1]`", "sweep.grid", place)
        )
        return Sweep(), problems
    axes = []
    for path, values in grid.value.items():
        if isinstance(values.value, dict):
            message = f"sweep.grid.{path}: write the whole path as one key, as in `algorithm.lr: [0.1, 0.2]`"
            problems.append(_problem(message, f"sweep.grid.{path}", values.where))
        elif not isinstance(values.value, tuple) or not values.value:
            message = f"sweep.grid.{path} must be a list of values"
            problems.append(_problem(message, f"sweep.grid.{path}", values.where))
        else:
            axes.append((path, values.value))
    if math.prod(len(values) for _, values in axes) > MAX_VARIANTS:
        problems.append(_problem(f"sweep.grid has more than {MAX_VARIANTS} combinations", "sweep.grid", grid.where))
        return Sweep(), problems
    return Sweep(tuple(axes)), problems


def _problem(message: str, path: str, where: Where) -> Problem:
    return Problem(message, path, where.file, where.line, where.column)
