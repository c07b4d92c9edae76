"""What torch.compile gains a step of training, and how many steps it takes to earn its own time back.

    python bench/compiled.py [--size tiny small] [--path lean own] [--steps 24] [--threads 2] [--device cpu]

SFT on the models and texts of `bench/learner.py`, as `hardware.compile: true` trains them: `lean` is a Llama on its
tree of tokens, `own` the same sizes of a Gemma, whose forward is its own. A learner with compiled layers and one
without take turns step by step; the losses of every step must agree to 1e-4.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from learner import LR, SIZES, VOCABULARY, model, rows
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM

from engine.lm import lean, supervised
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import Policy
from engine.plan.stage import Resources


def built(path: str, size: str) -> nn.Module:
    """The same random weights every time."""
    if path == "lean":
        return model("sft", size)
    torch.manual_seed(0)
    heads = SIZES[size]["num_attention_heads"]
    module = GemmaForCausalLM(
        GemmaConfig(
            vocab_size=VOCABULARY,
            num_key_value_heads=heads,
            head_dim=SIZES[size]["hidden_size"] // heads,
            max_position_embeddings=1024,
            **SIZES[size],
        )
    )
    assert not lean.supports(module)
    return module


def steps(
    path: str, size: str, batches: Sequence[Any], device: str, *, compiled: bool
) -> Iterator[tuple[float, float]]:
    """Seconds and loss of each step."""
    module = built(path, size).train().to(device)
    policy = Policy(module, None)
    learner = Learner(module, LearnerSettings(lr=LR), resources=Resources(compile=compiled))
    for batch in batches:
        began = time.perf_counter()
        told = learner.step(lambda made: supervised.batch_loss(policy, made), [batch])
        yield time.perf_counter() - began, told["loss"]


def measure(path: str, size: str, count: int, batch: int, device: str) -> str:
    """One row of the table."""
    found = rows("sft", count * batch, seed=1)
    order = supervised.quick_order(Policy(built(path, size), None), found)
    place = {index: rank for rank, index in enumerate(order)}
    batches = [
        supervised.collate([found[i] for i in sorted(range(first, first + batch), key=place.__getitem__)])
        for first in range(0, len(found), batch)
    ]
    told = list(
        zip(
            steps(path, size, batches, device, compiled=False),
            steps(path, size, batches, device, compiled=True),
            strict=True,
        )
    )
    warm = told[3:]
    plain, compiled = (statistics.median(one[way][0] for one in warm) for way in (0, 1))
    gained = statistics.median(one[0] / other[0] for one, other in warm)
    took = sum(other[0] - one[0] / gained for one, other in told[:3])
    apart = max(abs(one[1] - other[1]) for one, other in told)
    assert apart < 1e-4, "compiled layers compute another loss"
    pays = f"{took / (plain - plain / gained):,.0f}" if gained > 1 else "never"
    return (
        f"| {path}, {size} | {plain * 1e3:,.0f} | {compiled * 1e3:,.0f} | {gained:.2f} | {took:.0f} | {pays} "
        f"| {apart:.1e} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--path", nargs="+", choices=["lean", "own"], default=["lean", "own"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| path, model | step, ms | compiled, ms | gained × | compiling, s | pays after steps | losses differ by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in given.path:
        for size in given.size:
            print(measure(path, size, given.steps, given.batch, given.device), flush=True)


if __name__ == "__main__":
    main()
