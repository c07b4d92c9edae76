"""A stage that does nothing but write one file, for `bench/queue.py`."""

from __future__ import annotations

from engine.runtime.context import StageContext


def noop(ctx: StageContext) -> None:
    """Write the number."""
    (ctx.output_dir / "answer.txt").write_text(str(ctx.extra["number"]))
