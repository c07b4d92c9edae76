"""`${env:NAME}`: a secret's name in the place of the secret.

When a spec is loaded only the form is checked, so that neither the store nor a log ever holds a value; the
worker resolves what a stage reads, just before it runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from engine.errors import Problem, SpecError
from engine.spec.tree import Node, Where

_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_ANY = re.compile(r"\$\{[^}]*\}?")
_TOKENS = (
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"), "a Hugging Face token", "HF_TOKEN"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{20,}\b"), "an API key", "API_KEY"),
    (re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"), "a GitHub token", "GITHUB_TOKEN"),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), "an AWS key", "AWS_ACCESS_KEY_ID"),
)
_MODEL_READS = (("dataset",), ("model", "warmup"), ("algorithm", "data"))
"""Text that a model reads or that is code: a secret there would leak into weights and samples."""


def check_secrets(root: Node) -> list[Problem]:
    """What is wrong with the references to secrets in a tree, and secrets that stand in it themselves."""
    return [problem for path, node in _texts(root, ()) for problem in _check(path, str(node.value), node.where)]


def resolve_secrets(value: Any, env: Mapping[str, str]) -> Any:
    """`value` with every `${env:NAME}` replaced. Raises SpecError naming the variables that are not set."""
    missing: set[str] = set()
    resolved = _resolve(value, env, missing, ())
    if missing:
        names = ", ".join(sorted(missing))
        raise SpecError(f"the spec refers to {names}, not set in this worker's environment: export it there")
    return resolved


def _resolve(value: Any, env: Mapping[str, str], missing: set[str], path: tuple[str, ...]) -> Any:
    if path in _MODEL_READS:
        return value
    if isinstance(value, str):

        def replaced(found: re.Match[str]) -> str:
            name = found.group(1)
            if name not in env:
                missing.add(name)
            return env.get(name, "")

        return _REFERENCE.sub(replaced, value) if "${env:" in value else value
    if isinstance(value, Mapping):
        return {key: _resolve(child, env, missing, (*path, key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(child, env, missing, (*path, "")) for child in value]
    return value


def _check(path: tuple[str, ...], text: str, where: Where) -> Iterator[Problem]:
    dotted = ".".join(path)
    if any(path[: len(prefix)] == prefix for prefix in _MODEL_READS):
        if "${env:" in text:
            yield _problem(f"{dotted} is read by the model or is code: no place for a secret", dotted, where)
        return
    for found in _ANY.finditer(text):
        if not _REFERENCE.fullmatch(found.group()):
            message = f"{found.group()!r} in {dotted}: only ${{env:NAME}} is replaced, with a variable's name"
            yield _problem(message, dotted, where)
    for pattern, what, name in _TOKENS:
        if pattern.search(text):
            message = f"{dotted} holds what looks like {what}: write ${{env:{name}}}, since specs are stored"
            yield _problem(message, dotted, where)


def _problem(message: str, path: str, where: Where) -> Problem:
    return Problem(message, path, where.file, where.line, where.column)


def _texts(node: Node, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Node]]:
    value = node.value
    if isinstance(value, str):
        if "${" in value or "_" in value or "-" in value or "AKIA" in value:
            yield path, node
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _texts(child, (*path, key))
    elif isinstance(value, tuple):
        for index, child in enumerate(value):
            yield from _texts(child, (*path, str(index)))
