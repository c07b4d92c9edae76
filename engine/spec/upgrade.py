"""The version of a spec's format: what this rlx reads, and how older specs become current ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from engine.errors import Problem
from engine.spec.tree import Node

CURRENT = 1
Migration: TypeAlias = Callable[[Node], Node]
"""From a tree of one version to the same spec in the next."""
MIGRATIONS: Mapping[int, Migration] = {}
"""By the version that a migration starts from. Version 1 is the first."""


def upgraded(
    root: Node, *, current: int = CURRENT, migrations: Mapping[int, Migration] = MIGRATIONS
) -> tuple[Node, list[Problem]]:
    """The tree in the current version, or what is wrong with the version it states."""
    stated = root.get("version")
    if stated is None:
        return root, [Problem(_missing(root, current), "version", *root.where[:3])]
    version = stated.value
    if isinstance(version, bool) or not isinstance(version, int):
        shown = "empty" if version is None else repr(version)
        return root, [Problem(f"version is {shown}: write `version: {current}`", "version", *stated.where[:3])]
    if version > current or version < min(migrations, default=current):
        advice = "upgrade rlx" if version > current else f"write `version: {current}`"
        message = f"version {version} is not one that this rlx reads (it reads up to {current}): {advice}"
        return root, [Problem(message, "version", *stated.where[:3])]
    for step in range(version, current):
        root = migrations[step](root)
    if version != current:
        root = root.with_key("version", Node(current, stated.where))
    return root, []


def _missing(root: Node, current: int) -> str:
    if root.get("items") is not None and root.get("dataset") is None:
        return (
            "this is a dataset, not an experiment: write a spec with `dataset: {file: …}` that names it, "
            "beside version, name, algorithm and model"
        )
    return f"version is missing: begin the spec with `version: {current}`"
