"""The in-process sampler beside one candidate, one token, one forward at a time.

The peer is how a plain script samples: for each candidate a prompt is read into a cache, then the model is called
once a token. Both sides draw the same noise and must return the same tokens. Llama architecture, 2 layers, width
128, random weights, prompts of 66 tokens, a dozen new tokens; contexts grow by one candidate a decision.

    python bench/sampler.py [--vocabulary 500 32000] [--environments 1 4 16] [--repeats 5] [--threads 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from engine.lm.draw import draw
from engine.lm.hf import HFSampler
from engine.lm.noise import NoiseKey, exponentials, words
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams
from engine.lm.scratch import train_tokenizer

CANDIDATES, DECISIONS, PROMPT, NEW = 8, 4, 66, 12
PARAMS = SamplingParams(max_new_tokens=NEW)
Contexts = list[list[int]]


def make_policy(vocabulary: int) -> Policy:
    """Two random layers; the tokenizer only has to decode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
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
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(engine(policy, environments)[1])
        theirs.append(one_by_one(policy, environments)[1])
    tokens = environments * CANDIDATES * DECISIONS * NEW
    mine, peer = statistics.median(ours), statistics.median(theirs)
    return {
        "vocabulary": vocabulary,
        "environments": environments,
        "tokens_per_s": tokens / mine,
        "peer_tokens_per_s": tokens / peer,
        "ratio": peer / mine,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[500, 32_000])
    parser.add_argument("--environments", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = [measure(v, e, options.repeats) for v in options.vocabulary for e in options.environments]
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'vocabulary':>10} {'environments':>12} {'tokens/s':>9} {'one by one':>10} {'ratio':>6}")
    for row in rows:
        print(
            f"{row['vocabulary']:10,.0f} {row['environments']:12.0f} {row['tokens_per_s']:9,.0f} "
            f"{row['peer_tokens_per_s']:10,.0f} {row['ratio']:6.1f}"
        )


if __name__ == "__main__":
    main()
