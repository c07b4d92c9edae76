"""The in-process sampler beside `transformers.generate`, and beside one candidate, one token, one forward at a time.

`generate`: 8 prompts of 192 tokens, of which all share the first 160, 8 completions each, 64 sequences in one batch;
one token in 25 ends a sequence, none has more than 64. Once as it comes, once from a cache in which the shared tokens
were read before, as its documentation shows. With our noise both must say the same; timed, it draws its own.

One by one is how a plain script samples: for each candidate a prompt is read into a cache, then the model is called
once a token. Both sides draw the same noise and must return the same tokens. Prompts of 66 tokens, a dozen new
tokens; contexts grow by one candidate a decision.

Llama architecture, 2 layers, width 128 (beside `generate` also 8 layers, width 512), random weights, float32.

    python bench/sampler.py [--peers generate one-by-one] [--sizes tiny small] [--vocabulary 500 32000]
                            [--environments 1 4 16] [--repeats 5] [--threads 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from bench.parts.generate_peer import Rows, Task, generate
from engine.lm.draw import draw
from engine.lm.hf import HFSampler
from engine.lm.noise import NoiseKey, exponentials, words
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams
from engine.lm.scratch import train_tokenizer

CANDIDATES, DECISIONS, PROMPT, NEW = 8, 4, 66, 12
PARAMS = SamplingParams(max_new_tokens=NEW)
PROMPTS, SHARED, OWN, LONGEST, ENDS = 8, 160, 32, 64, 25
PEERS = ("generate", "one-by-one")
SIZES = {"tiny": (2, 128), "small": (8, 512)}
Contexts = list[list[int]]


def make_policy(vocabulary: int, layers: int = 2, width: int = 128) -> Policy:
    """Random layers; the tokenizer only has to decode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=512,
        initializer_range=0.08,
    )
    return Policy(LlamaForCausalLM(config).eval(), train_tokenizer([], 0))


def prompts(environments: int) -> Contexts:
    """One prompt an environment, all different."""
    return [[5 + (7 * i + environment) % 240 for i in range(PROMPT)] for environment in range(environments)]


def keys(environments: int, decision: int) -> list[NoiseKey]:
    return [NoiseKey(0, environment, decision) for environment in range(environments)]


def engine(policy: Policy, environments: int) -> tuple[list[list[list[int]]], float]:
    """All environments and candidates in one batch; (tokens by decision and row, seconds)."""
    sampler, contexts, said = HFSampler(policy), prompts(environments), []
    started = perf_counter()
    for decision in range(DECISIONS):
        groups = sampler.generate(contexts, CANDIDATES, PARAMS, None, keys(environments, decision))
        said.append([completion.token_ids for group in groups for completion in group])
        contexts = [context + group[0].token_ids for context, group in zip(contexts, groups, strict=True)]
    return said, perf_counter() - started


@torch.no_grad()
def one_by_one(policy: Policy, environments: int) -> tuple[list[list[list[int]]], float]:
    """The same tokens, one candidate after the other."""
    contexts, said = prompts(environments), []
    started = perf_counter()
    for decision in range(DECISIONS):
        rows = [
            _sample(policy, context, key, candidate)
            for context, key in zip(contexts, keys(environments, decision), strict=True)
            for candidate in range(CANDIDATES)
        ]
        said.append(rows)
        contexts = [context + rows[i * CANDIDATES] for i, context in enumerate(contexts)]
    return said, perf_counter() - started


def _sample(policy: Policy, context: Sequence[int], key: NoiseKey, candidate: int) -> list[int]:
    model: Any = policy.model
    bits = words([key], candidate + 1, NEW)[:, candidate:]
    cache, ids, tokens = DynamicCache(config=model.config), torch.tensor([list(context)]), []
    for position in range(NEW):
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1].float()
        token, _ = draw(logits, exponentials(bits[position], logits.shape[-1]), PARAMS)
        tokens.append(int(token))
        ids = token.unsqueeze(0)
    return tokens


def measure(vocabulary: int, environments: int, repeats: int) -> dict[str, float]:
    """Medians of both sides, in alternation, after one round that only warms up and compares."""
    policy = make_policy(vocabulary)
    if engine(policy, environments)[0] != one_by_one(policy, environments)[0]:
        raise SystemExit(f"vocabulary {vocabulary}: the two sides said different things")
    together, singly = [], []
    for _ in range(repeats):
        together.append(engine(policy, environments)[1])
        singly.append(one_by_one(policy, environments)[1])
    tokens = environments * CANDIDATES * DECISIONS * NEW
    mine, peer = statistics.median(together), statistics.median(singly)
    return {
        "vocabulary": vocabulary,
        "environments": environments,
        "tokens_per_s": tokens / mine,
        "peer_tokens_per_s": tokens / peer,
        "ratio": peer / mine,
    }


def batch(vocabulary: int) -> Task:
    """Sequences that begin alike, as a group's do in GRPO or behind one system prompt."""
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 250, (PROMPTS, SHARED + OWN), generator=draws)
    ids[:, :SHARED] = ids[0, :SHARED]
    keys = tuple(NoiseKey(0, prompt, 0) for prompt in range(PROMPTS))
    return Task(ids.tolist(), SHARED, CANDIDATES, LONGEST, tuple(range(0, vocabulary, ENDS)), keys)


def ours(sampler: HFSampler, task: Task) -> Rows:
    """The same sequences by the in-process sampler, which knows no activation from before, as after an update."""
    sampler.refresh()
    params = SamplingParams(max_new_tokens=task.new, eos=task.eos)
    groups = sampler.generate(task.prompts, task.n, params, None, list(task.keys))
    return [completion.token_ids for group in groups for completion in group]


def beside_generate(size: str, vocabulary: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of all three, median of rounds in alternation, after a round that compares what they say."""
    policy, task = make_policy(vocabulary, *SIZES[size]), batch(vocabulary)
    sampler = HFSampler(policy)
    sides: dict[str, Callable[[], Rows]] = {
        "tokens_per_s": lambda: ours(sampler, task),
        "generate_tokens_per_s": lambda: generate(policy.model, task, prefilled=False),
        "prefilled_tokens_per_s": lambda: generate(policy.model, task, prefilled=True),
    }
    said = ours(sampler, task)
    for prefilled in (False, True):
        if generate(policy.model, task, prefilled=prefilled, same_noise=True) != said:
            raise SystemExit(f"vocabulary {vocabulary}: with the same noise the two sides said different things")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(repeats + 1):
        for name, side in sides.items():
            started = perf_counter()
            tokens = sum(map(len, side()))
            if round_ > 0:
                rates[name].append(tokens / (perf_counter() - started))
    result: dict[str, Any] = {"size": size, "vocabulary": vocabulary} | {
        name: statistics.median(values) for name, values in rates.items()
    }
    result["ratio"] = result["tokens_per_s"] / result["generate_tokens_per_s"]
    result["prefilled_ratio"] = result["tokens_per_s"] / result["prefilled_tokens_per_s"]
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--peers", choices=PEERS, nargs="+", default=list(PEERS))
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[500, 32_000])
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    tables: dict[str, list[dict[str, Any]]] = {}
    if "generate" in options.peers:
        tables["generate"] = [beside_generate(s, v, options.repeats) for s in options.sizes for v in options.vocabulary]
    if "one-by-one" in options.peers:
        tables["one-by-one"] = [
            measure(v, e, options.repeats) for v in options.vocabulary for e in options.environments
        ]
    if options.json:
        print(json.dumps(tables))
        return
    if rows := tables.get("generate"):
        print(
            f"{'size':>5} {'vocabulary':>10} {'tokens/s':>9} {'generate':>9} {'ratio':>6} {'prefilled':>9} {'ratio':>6}"
        )
        for row in rows:
            print(
                f"{row['size']:>5} {row['vocabulary']:10,} {row['tokens_per_s']:9,.0f} "
                f"{row['generate_tokens_per_s']:9,.0f} {row['ratio']:6.1f} "
                f"{row['prefilled_tokens_per_s']:9,.0f} {row['prefilled_ratio']:6.1f}"
            )
    if rows := tables.get("one-by-one"):
        print(f"{'vocabulary':>10} {'environments':>12} {'tokens/s':>9} {'one by one':>10} {'ratio':>6}")
        for row in rows:
            print(
                f"{row['vocabulary']:10,.0f} {row['environments']:12.0f} {row['tokens_per_s']:9,.0f} "
                f"{row['peer_tokens_per_s']:10,.0f} {row['ratio']:6.1f}"
            )


if __name__ == "__main__":
    main()
