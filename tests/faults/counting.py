"""A stage that does without torch: several of a run may share a process, as long as nothing happens to them."""

from __future__ import annotations

import time

from engine.runtime.context import Sample, StageContext, Stopped


def count(ctx: StageContext) -> None:
    """Add up `extra.steps` random numbers, no faster than one in `extra.pace_s`; begins anew when it is interrupted."""
    total = 0.0
    for step in range(1, int(ctx.extra["steps"]) + 1):
        if ctx.should_stop:
            raise Stopped
        total += float(ctx.rng.random())
        ctx.log(step, total=total)
        ctx.sample(Sample(step, f"{step}: {total}"))
        time.sleep(float(ctx.extra["pace_s"]))
    (ctx.output_dir / "total.txt").write_text(repr(total))
