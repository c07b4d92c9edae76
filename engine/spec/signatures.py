"""Whether the user's functions are functions of the right name and shape: by reading their source, never running it.

What they return is found out by preflight, which calls them in a process of their own.
"""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from engine.errors import Problem
from engine.spec.dataset import Dataset

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "score_fn": ("text", "answer"),
    "done_fn": ("text",),
    "split_fn": ("output",),
    "reply_fn": ("text", "answer"),
}
"""What each function is called with, by position."""

_Def: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
_Scope: TypeAlias = _Def | ast.Lambda | ast.ClassDef


class Finding(NamedTuple):
    """Something wrong with a source; line and column count from 1 within it."""

    message: str
    line: int = 1
    column: int = 1


def check_functions(dataset: Dataset) -> list[Problem]:
    """What is wrong with a dataset's functions; lines count within each function's own source."""
    return [
        Problem(finding.message, f"dataset.{name}", line=finding.line, column=finding.column)
        for name in ARGUMENTS
        if (source := getattr(dataset, name)) is not None
        for finding in check_source(name, source)
    ]


def check_source(name: str, source: str) -> list[Finding]:
    """What is wrong with the source of the function `name`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
            compile(source, f"<{name}>", "exec", dont_inherit=True)  # finds `return` outside a function, and its like
    except SyntaxError as error:
        # Python counts from 1, and says 0 or nothing where it does not know.
        return [Finding(f"{name} is not Python: {error.msg}", error.lineno or 1, max(error.offset or 1, 1))]
    except (ValueError, RecursionError, MemoryError) as error:
        return [Finding(f"{name} is not Python that can be compiled: {error or type(error).__name__}")]
    return list(_judge(name, module))


def call(name: str) -> str:
    """How a function is called, such as `score_fn(text, answer)`."""
    return f"{name}({', '.join(ARGUMENTS[name])})"


def _judge(name: str, module: ast.Module) -> Iterator[Finding]:
    found = _binding(name, module.body)
    if found is None:
        names = [node.name for node in _statements(module.body) if isinstance(node, _Def)]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or (names if len(names) == 1 else [])
        line = next((n.lineno for n in _statements(module.body) if isinstance(n, _Def) and n.name in close), 1)
        hint = f" Rename {close[0]!r}." if close else ""
        yield Finding(f"no function called {name} is defined here: it must be `def {call(name)}`.{hint}", line)
        return
    if isinstance(found, ast.ClassDef):
        yield Finding(f"{name} is a class: it must be `def {call(name)}`", found.lineno, found.col_offset + 1)
        return
    if not isinstance(found, _Def | ast.Lambda):
        return  # imported, or made by a call: its shape shows when preflight calls it
    if isinstance(found, ast.AsyncFunctionDef):
        yield Finding(
            f"{name} is async: nobody awaits it; write `def {call(name)}`", found.lineno, found.col_offset + 1
        )
    if not getattr(found, "decorator_list", ()):  # a decorator may change the arguments
        yield from _arity(name, found)
    if isinstance(found, _Def):
        yield from _returns(name, found)


def _arity(name: str, function: _Def | ast.Lambda) -> Iterator[Finding]:
    arguments, wanted = function.args, ARGUMENTS[name]
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    place = (function.lineno, function.col_offset + 1)
    if len(positional) < len(wanted) and arguments.vararg is None:
        lacking = ", ".join(wanted[len(positional) :])
        taken = ", ".join(argument.arg for argument in positional)
        yield Finding(f"{name}({taken}) is called as {call(name)}: it takes no {lacking}", *place)
    elif required > len(wanted):
        extra = positional[len(wanted)]
        advice = "remove it, or give it a default"
        message = f"{name} is called as {call(name)}, with nothing for {extra.arg!r}: {advice}"
        yield Finding(message, extra.lineno, extra.col_offset + 1)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is None:
            message = f"{name} is called as {call(name)}: the keyword {argument.arg!r} needs a default"
            yield Finding(message, argument.lineno, argument.col_offset + 1)


def _returns(name: str, function: _Def) -> Iterator[Finding]:
    own = list(_own_nodes(function))
    for node in own:
        if isinstance(node, ast.Yield | ast.YieldFrom):
            yield Finding(f"{name} yields, so it returns a generator: use `return`", node.lineno, node.col_offset + 1)
            return
    if not any(isinstance(node, ast.Return) and node.value is not None for node in own):
        yield Finding(f"{name} never returns a value", function.lineno, function.col_offset + 1)


def _own_nodes(function: _Def) -> Iterator[ast.AST]:
    """The nodes of a function's body that are not inside another scope."""
    stack: list[ast.AST] = list(reversed(function.body))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _Scope):
            stack.extend(ast.iter_child_nodes(node))


def _binding(name: str, body: Iterable[ast.stmt]) -> ast.AST | None:
    """What the name stands for once the module has run, as far as the source tells: the last one wins."""
    last: ast.AST | None = None
    for statement in _statements(body):
        if isinstance(statement, _Def | ast.ClassDef):
            if statement.name == name:
                last = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            if any(isinstance(node, ast.Name) and node.id == name for target in targets for node in ast.walk(target)):
                simple = isinstance(targets[0], ast.Name) and statement.value is not None
                last = statement.value if simple else statement
        elif isinstance(statement, ast.Import | ast.ImportFrom) and any(
            (alias.asname or alias.name) == name for alias in statement.names
        ):
            last = statement
    return last


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module in order, those under `if`, `try`, `with` and loops included."""
    stack = list(reversed(list(body)))
    while stack:
        statement = stack.pop()
        yield statement
        if isinstance(statement, _Scope):
            continue
        inner: list[ast.stmt] = []
        for part in ("body", "handlers", "orelse", "finalbody"):
            for node in getattr(statement, part, ()):
                inner.extend(node.body if isinstance(node, ast.ExceptHandler) else [node])
        stack.extend(reversed(inner))
