"""`rlx samples`: what a run's policy wrote, with every candidate, its Q-value, and which one was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from engine.cli.arguments import Handle
from engine.cli.output import answer, answer_json, number, one_line, printable, style, talk
from engine.cli.quick import QuickCommand


def register(root: typer.Typer) -> None:
    """Add `samples` to `rlx`."""
    root.command("samples", cls=QuickCommand)(samples)


def samples(
    handle: Handle,
    step: Annotated[int | None, typer.Option(help="Only of this step; by default the newest first.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Only of the best checkpoint's step.")] = False,
    split: Annotated[str | None, typer.Option(help="Only of this dataset split.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only of this kind, such as episode or score.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="The same samples as JSON.")] = False,
) -> None:
    """Show what a policy wrote, with candidates and Q-values.

    Decision by decision where the run recorded them: every candidate, its Q, an arrow at the one that was taken.
    """
    from engine.cli.places import required_store
    from engine.errors import SpecError
    from engine.store import checkpoints, runs
    from engine.store import samples as store
    from engine.store.tables import RunId

    if best and step is not None:
        raise SpecError("--best and --step exclude each other: keep one")

    with required_store().read() as session:
        run = runs.find(session, handle)
        if best:
            step = checkpoints.find(session, run, "best").step
        found = store.of_run(session, RunId(run.id), step=step, split=split, kind=kind, limit=limit)
        rows = [
            {field: getattr(row, field) for field in ("step", "kind", "split", "item", "score", "text", "data")}
            for row in found
        ]
        name = run.handle
    if as_json:
        answer_json(rows)
        return
    if not rows:
        talk(f"{name} has no such samples{'' if step is None else f' at step {step}'}.")
    for index, row in enumerate(rows):
        if index:
            answer()
        for line in sample_lines(row):
            answer(line)


def sample_lines(row: Mapping[str, Any]) -> list[str]:
    """One sample: a head line, then its decisions if it recorded them, else its text."""
    item = "" if row["item"] is None else f", item {row['item']}"
    score = "-" if row["score"] is None else number(row["score"])
    lines = [style(f"step {row['step']}, {row['split']}{item}, {row['kind']}: score {score}", None, bold=True)]
    decisions = row["data"].get("steps")
    if not isinstance(decisions, list) or not decisions:
        return [*lines, *(f"  {line}" for line in printable(row["text"]).splitlines())]
    for number_, decision in enumerate(decisions, start=1):
        candidates = decision.get("candidates", decision) if isinstance(decision, Mapping) else decision
        lines.append(f"  decision {number_}")
        for candidate in candidates:
            lines.append(_candidate(candidate))
        if isinstance(decision, Mapping) and decision.get("reply"):
            lines.append(f"    {style('reply', 'bright_black')}  {one_line(decision['reply'])}")
    return lines


def _candidate(candidate: Mapping[str, Any]) -> str:
    q = candidate.get("q")
    shown = "      -" if q is None else f"{q:7.3f}"
    line = f"  {'→' if candidate.get('chosen') else ' '} {shown}  {one_line(str(candidate.get('text', '')))}"
    return style(line, "green") if candidate.get("chosen") else line
