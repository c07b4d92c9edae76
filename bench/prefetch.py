"""What making a batch costs beside a step of training, and what is gained where a thread makes it ahead.

    python bench/prefetch.py [--method sft reward] [--size tiny small] [--steps 24] [--threads 2] [--device cpu]

The models and texts of `bench/learner.py`. Two learners of the same weights take turns step by step: one makes each
batch when it needs it, the other finds it made (`engine.lm.prefetch`). On a GPU the second is what training does.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
from learner import LR, SIZES, model, rows

from engine.lm import supervised
from engine.lm.heads import ScalarHead
from engine.lm.learner import Learner, LearnerSettings, LossOutput
from engine.lm.policy import Policy
from engine.lm.prefetch import Ahead, made_ahead
from engine.methods.reward import pairs, stages

Loss = Callable[[Any], LossOutput]


class Clock:
    """Seconds spent in making batches."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def made(self, method: str, batches: Sequence[Sequence[Any]]) -> Iterator[Any]:
        """Each batch in its quick order, collated."""
        collate: Any = supervised.collate if method == "sft" else pairs.collate
        for batch in batches:
            began = time.perf_counter()
            item = collate(sorted(batch, key=lambda row: row.prompt))
            self.seconds.append(time.perf_counter() - began)
            yield item


def steps(module: torch.nn.Module, loss: Loss, batches: Iterator[Any]) -> Iterator[tuple[float, float]]:
    """The seconds and the loss of each step, its batch included."""
    learner = Learner(module, LearnerSettings(lr=LR))
    while True:
        began = time.perf_counter()
        if (batch := next(batches, None)) is None:
            return
        told = learner.step(loss, [batch])
        yield time.perf_counter() - began, told["loss"]


def measure(method: str, size: str, count: int, batch: int, device: str) -> str:
    """One row of the table."""
    found = rows(method, count * batch, seed=1)
    batches = [found[first : first + batch] for first in range(0, len(found), batch)]

    def ready() -> tuple[torch.nn.Module, Loss]:
        module = model(method, size).train().to(device)
        policy, head = Policy(module, None), ScalarHead(module, None)
        if method == "sft":
            return module, lambda made: supervised.batch_loss(policy, made)
        return module, lambda made: stages.batch_loss(head, made)

    clock, told = Clock(), []
    ahead = made_ahead if device == "cuda" else lambda source, _: closing(Ahead(source))
    with ahead(Clock().made(method, batches), device) as made:
        for inline, prefetched in zip(
            steps(*ready(), clock.made(method, batches)), steps(*ready(), iter(made)), strict=True
        ):
            assert inline[1] == prefetched[1], "the same losses, bit for bit"
            told.append((inline[0], prefetched[0]))
    plain, threaded = (statistics.median(column) for column in zip(*told[2:], strict=True))
    making = statistics.median(clock.seconds[2:])
    gained = statistics.median(one / other for one, other in told[2:])
    return (
        f"| {method}, {size} | {plain * 1e3:,.0f} | {making * 1e3:.1f} | {making / plain:.1%} "
        f"| {threaded * 1e3:,.0f} | {gained:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=["sft", "reward"], default=["sft", "reward"])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| method, model | step, ms | its batch, ms | share | step with a thread, ms | gained × |")
    print("| --- | --- | --- | --- | --- | --- |")
    for method in given.method:
        for size in given.size:
            print(measure(method, size, given.steps, given.batch, given.device), flush=True)


if __name__ == "__main__":
    main()
