"""SFT of a Llama of random weights on one GPU: tokens a second, share of the card's peak, memory, and resuming.

    python bench/gpu_sft.py [--size 1b] [--tokens 2048] [--batch 8] [--steps 20] [--json]

Llama 3.2 1B's architecture, bfloat16 autocast over float32 weights, conversations of one length whose answers are half
of them. FLOPs of a token: 6 N + 6 L D T (forward and backward over N weights, causal attention over T tokens), whatever
was computed twice. The peak is the card's dense bfloat16 figure as its maker gives it. Without a GPU `--size tiny` runs
the same on the CPU, to see that it works; it then tells no share.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import Policy
from engine.lm.supervised import Example, completion_loss
from engine.plan.stage import Resources

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""FLOP/s of dense bfloat16, by a part of the card's name."""
SIZES = {
    "1b": LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
    ),
}


def make(size: str, device: str, resources: Resources) -> tuple[Policy, Learner]:
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(SIZES[size]).train()
    settings = LearnerSettings(lr=1e-5, clip_norm=1.0)
    return Policy(model, None), Learner(model, settings, precision=torch.bfloat16, resources=resources)


def batch(step: int, count: int, tokens: int, vocabulary: int) -> list[Example]:
    """Conversations of random tokens that share no beginning."""
    rng = torch.Generator().manual_seed(step)
    rows = torch.randint(5, vocabulary, (count, tokens), generator=rng).tolist()
    half = tokens // 2
    return [Example(row[:half], row[half:], [True] * (tokens - half)) for row in rows]


def measure(size: str, tokens: int, count: int, steps: int, *, checkpoint: bool) -> dict[str, Any]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    resources = Resources(checkpoint_activations=checkpoint)
    policy, learner = make(size, device, resources)
    config = SIZES[size]
    seconds, losses = [], []
    middle = steps // 2
    for step in range(steps):
        examples = batch(step, count, tokens, config.vocab_size)
        _wait(device)
        began = time.perf_counter()
        parts = [[example] for example in examples]
        losses.append(learner.step(lambda part: completion_loss(policy, part), parts)["loss"])
        _wait(device)
        seconds.append(time.perf_counter() - began)
        if step + 1 == middle:
            state = learner.state()
    again_policy, again = make(size, device, resources)
    again.load_state(state)
    resumed = [
        again.step(
            lambda part: completion_loss(again_policy, part),
            [[example] for example in batch(step, count, tokens, config.vocab_size)],
        )["loss"]
        for step in range(middle, steps)
    ]
    rate = count * tokens / sorted(seconds[2:])[len(seconds[2:]) // 2]
    weights = sum(parameter.numel() for parameter in policy.model.parameters())
    flops = 6 * weights + 6 * config.num_hidden_layers * config.hidden_size * tokens
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    return {
        "card": name,
        "weights": weights,
        "tokens_per_second": rate,
        "share_of_peak": None if peak is None else rate * flops / peak,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
        "resumed_differs_by": max(abs(a - b) / b for a, b in zip(resumed, losses[middle:], strict=True)),
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="1b")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--checkpoint-activations", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.size != "tiny" and not torch.cuda.is_available():
        sys.exit("no GPU is here: --size tiny runs the same on the CPU")
    found = measure(
        options.size, options.tokens, options.batch, options.steps, checkpoint=options.checkpoint_activations
    )
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):22} {value if value is None or isinstance(value, str) else f'{value:,.4g}'}")


if __name__ == "__main__":
    main()
