"""What checking done_fn and split_fn after every token costs, beside calling them in process and beside a model's step.

64 sequences of 256 tokens, functions as in recurve's `best_lang`, in-process and hosted, taken in turns within one
run; then one decoding step of the tiny model (Llama, 2 layers, width 128) at the same batch and mean length.
`python bench/functions.py [--rows 64] [--tokens 256] [--vocabulary 500]`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.functions.client import open_functions
from engine.functions.sources import Sources

SOURCES = Sources(
    split_fn="def split_fn(output):\n    return output.endswith('\\n')\n",
    done_fn=(
        "PHRASE = 'best programming language'\n"
        "def done_fn(text):\n"
        "    answer = text[text.rindex('assistant'):]\n"
        "    start = answer.find(PHRASE)\n"
        "    return start >= 0 and '.' in answer[start:]\n"
    ),
)
CONTEXT = (
    "<|begin|>system\n\nYou are a helpful assistant.<|end|>user\n\n" + "Name three languages. " * 8 + "assistant\n\n"
)
PIECES = (" fast", " and", " a", " compiled", " language", ",", " Rust", "\n")

Extend = Callable[[list[int], list[str]], object]


def in_process(rows: int) -> Extend:
    """The peer: both functions called here, on texts kept here."""
    space: dict[str, Callable[[str], bool]] = {}
    for source in (SOURCES.split_fn, SOURCES.done_fn):
        exec(source or "", space)
    split, done = space["split_fn"], space["done_fn"]
    full, part = [CONTEXT] * rows, [""] * rows

    def extend(numbers: list[int], pieces: list[str]) -> object:
        flags = []
        for number, piece in zip(numbers, pieces, strict=True):
            full[number] += piece
            part[number] += piece
            flags.append((split(part[number]), done(full[number])))
        return flags

    return extend


def seconds_a_step(extend: Extend, rows: int, tokens: int) -> list[float]:
    numbers, times = list(range(rows)), []
    for step in range(tokens):
        pieces = [PIECES[(row + step) % len(PIECES)] for row in numbers]
        start = time.perf_counter()
        extend(numbers, pieces)
        times.append(time.perf_counter() - start)
    return times


@torch.inference_mode()
def seconds_of_decoding(rows: int, length: int, vocabulary: int) -> list[float]:
    """One token for each of `rows` after `length` cached tokens: forward pass and a draw."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config).eval()
    cache = model(torch.randint(vocabulary, (rows, length)), use_cache=True, logits_to_keep=1).past_key_values
    tokens, times = torch.randint(vocabulary, (rows, 1)), []
    for _ in range(30):
        start = time.perf_counter()
        logits = model(tokens, past_key_values=cache, use_cache=True).logits[:, -1]
        tokens = torch.multinomial(logits.softmax(-1), 1)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rows, tokens = given.rows, given.tokens
    torch.set_num_threads(1)

    direct: list[float] = []
    hosted: list[float] = []
    with open_functions(SOURCES) as host:
        for _ in range(given.rounds):
            direct += seconds_a_step(in_process(rows), rows, tokens)
            stops = host.stops()
            stops.open_many(range(rows), CONTEXT)
            hosted += seconds_a_step(stops.extend, rows, tokens)
            stops.close(range(rows))
    decoding = statistics.median(seconds_of_decoding(rows, len(CONTEXT) // 4 + tokens // 2, given.vocabulary))

    print(f"{rows} rows x {tokens} tokens, medians of {len(hosted)} steps; 1 thread, vocabulary {given.vocabulary}")
    for name, times in (("in process", direct), ("hosted", hosted)):
        middle, slow = statistics.median(times), statistics.quantiles(times, n=20)[-1]
        share = middle / (middle + decoding)
        print(f"{name:12} {middle * 1e6:8.0f} us a step ({slow * 1e6:.0f} at p95), {share:6.1%} of generation")
    extra = statistics.median(hosted) - statistics.median(direct)
    print(f"{'containment':12} {extra * 1e6:8.0f} us a step, {extra / (decoding + extra):6.1%} of generation")
    print(f"{'decoding':12} {decoding * 1e6:8.0f} us a step")


if __name__ == "__main__":
    main()
