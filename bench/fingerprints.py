"""What noting fingerprints costs: the time inside it, beside the time of the training that it watches, in one run.

python bench/fingerprints.py [specs/best_lang.yaml …] [--iterations 10]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from engine.cli.compiling import compiled
from engine.functions.client import open_functions
from engine.functions.sources import Sources
from engine.lm.learner import Learner
from engine.runtime.child import load_entry
from engine.runtime.local import LocalContext
from engine.runtime.trace import Trace

ROOT = Path(__file__).resolve().parent.parent


class Stopwatch:
    """Time spent in some functions; a call within another counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def watch(self, owner: type, name: str) -> None:
        """Measure `owner.name` from now on."""
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started, self._depth = perf_counter(), self._depth + 1
            try:
                return inner(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += perf_counter() - started

        setattr(owner, name, timed)


def measure(spec: Path, iterations: int, watch: Stopwatch) -> None:
    """Run the stages of `spec` up to its training, and print one line for that."""
    overrides = [f"algorithm.iterations={iterations}", "model.warmup.steps=30", f"evaluation.every={iterations}"]
    (variant,) = compiled(spec, overrides)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        made: dict[str, Path] = {}
        functions = stack.enter_context(open_functions(Sources.of(variant.loaded.resolved["dataset"])))
        for stage in variant.plan.stages:
            inputs = {name: made[producer] for name, producer in stage.inputs.items()}
            ctx = LocalContext(stage.config, 0, Path(folder, stage.name), inputs, functions, name=stage.name)
            seconds, started = watch.seconds, perf_counter()
            load_entry(stage.run)(ctx)
            took = perf_counter() - started
            made[stage.name] = ctx.output_dir
            spent, entries = watch.seconds - seconds, len(ctx.fingerprints)
            share, each = 100 * spent / took, 1e6 * spent / max(1, entries)
            print(f"{spec.stem:26} {stage.name:10} {took:8.2f} {entries:8} {each:10.1f} {share:9.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", type=Path)
    parser.add_argument("--iterations", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    watch = Stopwatch()
    watch.watch(Trace, "note")
    watch.watch(Learner, "_probe")
    print(f"{'spec':26} {'stage':10} {'seconds':>8} {'entries':>8} {'µs each':>10} {'share':>11}")
    for spec in given.specs or [ROOT / "specs" / f"best_lang{suffix}.yaml" for suffix in ("", "_ppo", "_reinforce")]:
        measure(spec, given.iterations, watch)


if __name__ == "__main__":
    main()
