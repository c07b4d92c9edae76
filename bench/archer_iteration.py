"""One iteration of ArCHer beside the same work done the way the original does it.

The original's work: Llama architecture, 2 layers, width 128, LoRA of rank 8; 8 candidates, 4 decisions, 128 tokens, 16
critic minibatches of 4, 2 PPO epochs, float32 on one CPU thread; vocabularies of 500 and 32,000. Both sides draw the
same noise, so tokens are equal and losses agree to rounding: every measured iteration checks it.

    python bench/archer_iteration.py [--vocabulary 500 32000] [--iterations 5] [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from bench.sequential_archer import SequentialArcher
from engine.functions.client import FunctionHost, open_functions
from engine.functions.sources import Sources
from engine.lm.heads import ScalarHead, new_head
from engine.lm.hf import HFSampler
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import LoraSettings, Policy, load_policy
from engine.lm.reference import Source
from engine.lm.scratch import train_tokenizer
from engine.methods.archer.config import Archer
from engine.methods.archer.ranker import Ranker
from engine.methods.archer.trainer import ArcherTrainer
from engine.methods.dialogue.environment import Game, Item
from engine.methods.dialogue.improve import Reference, TokenLearner, TokenRule
from engine.methods.dialogue.play import Speaker

LORA = LoraSettings(r=8, alpha=32, dropout=0.0)
SEED = 7
SOURCES = Sources(
    split_fn="def split_fn(output):\n    return sum(o for o in map(ord, output) if o < 128) % 12 == 0",
    done_fn="def done_fn(text):\n    text = text.split('assistant')[-1]\n"
    "    return sum(o for o in map(ord, text) if o < 128) % 499 == 1",
    score_fn="def score_fn(text, answer):\n    return float(sum(o for o in map(ord, text) if o < 128) % 3 == 0)",
)
"""Random text: an utterance has about a dozen tokens, as in the original's task, whatever the vocabulary. Only
ASCII counts: a character whose bytes are not all there yet reads differently piece by piece."""
PROMPT_TOKENS = 66


def work(
    *, candidates: int = 8, decisions: int = 4, tokens: int = 128, minibatches: int = 16, batch: int = 4, fill: int = 64
) -> Archer:
    """The original's setting as a spec of ours."""
    return Archer.model_validate(
        {
            "iterations": 1000,
            "episodes": {"environments": 1, "decisions": decisions, "max_tokens": tokens},
            "ranker": {
                "candidates": candidates,
                "sigmoid": False,
                "lr": 1e-4,
                "batch_size": batch,
                "updates": minibatches,
                "accumulate": minibatches,
                "grad_clip": None,
                "target": {"kind": "hard", "every": 100},
                "replay": {"capacity": 10_000, "min_fill": fill},
            },
            "generator": {
                "lr": 1e-4,
                "value_lr": 1e-4,
                "epochs": 2,
                "minibatch": 1,
                "kl": 0.1,
                "entropy": 0.03,
                "grad_clip": None,
                "normalise": False,
                "signal": "q",
                "start_after": 0,
            },
        }
    )


def random_words(count: int, rng: np.random.Generator) -> list[str]:
    """Text to train a tokenizer of any size on: words of random letters."""
    letters = np.array(list("abcdefghijklmnoprstuvwy"))
    return ["".join(rng.choice(letters, size=rng.integers(3, 9))) for _ in range(count)]


def make_model(folder: Path, vocabulary: int, *, width: int = 128) -> None:
    """A random Llama of two layers and a byte-level tokenizer of that vocabulary, as a Hugging Face directory."""
    rng = np.random.default_rng(SEED)
    texts = [" ".join(random_words(20, rng)) for _ in range(max(50, vocabulary // 4))]
    tokenizer = train_tokenizer(texts, vocabulary)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass
class Models:
    """One side's own copies of the three trained models."""

    policy: Policy
    critic: ScalarHead
    value: ScalarHead


def load(folder: Path) -> Models:
    """Both sides start from equal weights, with heads that are not zero, so that rankings mean something."""
    torch.manual_seed(SEED)
    source = Source(str(folder))
    policy = load_policy(source, lora=LORA)
    heads = [new_head(source, policy.tokenizer, lora=LORA) for _ in range(2)]
    generator = torch.Generator().manual_seed(SEED)
    for module in (policy.model, *heads):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and ("lora_B" in name or "score" in name):
                with torch.no_grad():
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return Models(policy, *heads)


def engine_side(config: Archer, models: Models, functions: FunctionHost, item: Item, seed: int) -> ArcherTrainer:
    """The engine's own trainer, as its stage assembles it."""
    policy, ranker, generator = models.policy, config.ranker, config.generator
    game = Game([item], chat=policy, functions=functions, system="", max_tokens=config.episodes.max_tokens)

    def learner(module: torch.nn.Module, lr: float) -> Learner:
        return Learner(module, LearnerSettings(lr=lr, clip_norm=None))

    return ArcherTrainer(
        config,
        seed=seed,
        policy=policy,
        speakers={"train": Speaker(HFSampler(policy), game)},
        ranker=Ranker(models.critic, learner(models.critic, ranker.lr), ranker, gamma=config.discount),
        generator=TokenLearner(
            policy,
            learner(policy.model, generator.lr),
            update=generator,
            rule=TokenRule("ppo", gamma=config.discount, lam=generator.lam, clip=generator.clip),
            reference=Reference(policy, fresh_adapters=False),
            value=(models.value, learner(models.value, generator.value_lr)),
        ),
    )


def prompt_of(policy: Policy) -> str:
    """Random words that make a chat's prompt as long as the original task's."""
    words = random_words(PROMPT_TOKENS, np.random.default_rng(SEED))
    return next(
        text
        for count in range(1, len(words))
        if len(policy.chat_ids("", text := " ".join(words[:count]))) >= PROMPT_TOKENS
    )


class Pair:
    """Both sides of the comparison, from equal weights and with equal noise."""

    def __init__(self, folder: Path, config: Archer, *, seed: int = SEED) -> None:
        self.config = config
        self.host = open_functions(SOURCES)
        ours, theirs = load(folder), load(folder)
        item = Item(prompt_of(ours.policy), "gold")
        self.ours = engine_side(config, ours, self.host, item, seed)
        namespace: dict[str, Any] = {}
        for source in (SOURCES.split_fn, SOURCES.done_fn, SOURCES.score_fn):
            exec(source or "", namespace)
        self.theirs = SequentialArcher(
            config,
            seed=seed,
            policy=theirs.policy,
            critic=theirs.critic,
            value=theirs.value,
            prompt=theirs.policy.chat_ids("", item.prompt),
            answer=item.answer,
            functions=namespace,
        )
        self.said: list[list[list[int]]] = []
        speaker = self.ours.speakers["train"]
        propose = speaker.propose

        def recorded(*args: Any, **named: Any) -> Any:
            proposals = propose(*args, **named)
            self.said.extend([list(u.token_ids) for u in group] for group in proposals)
            return proposals

        speaker.propose = recorded  # type: ignore[method-assign]

    def fill(self) -> None:
        """Gather on both sides what the critic first learns from."""
        while not self.ours.ready:
            self.ours.gather()
        self.theirs.fill()

    def compare(self, number: int) -> tuple[dict[str, float], dict[str, float]]:
        """One iteration on both sides: (ours, theirs), each with losses, seconds and tokens."""
        before = len(self.said)
        started = perf_counter()
        metrics = self.ours.iterate(number)
        ours = {key: metrics[key] for key in LOSSES} | {"seconds": perf_counter() - started}
        ours["tokens"] = float(sum(len(tokens) for group in self.said[before:] for tokens in group))
        started = perf_counter()
        theirs = self.theirs.iterate(number, metrics["epsilon"])
        return ours, theirs | {"seconds": perf_counter() - started}

    def close(self) -> None:
        self.host.close()


LOSSES = ("ranker/loss", "policy/loss", "value/loss")


@contextmanager
def stopwatch(owner: Any, name: str, seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add up the time spent in one method."""
    plain: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **named: Any) -> Any:
        started = perf_counter()
        try:
            return plain(*args, **named)
        finally:
            seconds[part] = seconds.get(part, 0.0) + perf_counter() - started

    setattr(owner, name, timed)
    try:
        yield
    finally:
        setattr(owner, name, plain)


def measure(vocabulary: int, iterations: int) -> None:
    """Print both sides' seconds an iteration, tokens a second and where the time goes."""
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), vocabulary)
        pair = Pair(Path(folder), work())
        pair.fill()
        pair.compare(1)  # first-time costs on both sides
        pair.theirs.seconds.clear()
        parts: dict[str, float] = {}
        ours, theirs = [], []
        speaker, ranker, generator = pair.ours.speakers["train"], pair.ours.ranker, pair.ours.generator
        with (
            stopwatch(speaker, "propose", parts, "sampling"),
            stopwatch(ranker, "values", parts, "ranking"),
            stopwatch(ranker, "update", parts, "critic"),
            stopwatch(generator, "improve", parts, "generator"),
        ):
            for number in range(2, 2 + iterations):
                mine, peer = pair.compare(number)
                check(pair, mine, peer)
                ours.append(mine)
                theirs.append(peer)
        pair.close()
    print(f"\nvocabulary {vocabulary:,}, {iterations} iterations, {torch.get_num_threads()} thread(s)")
    mean = statistics.median(row["seconds"] for row in ours), statistics.median(row["seconds"] for row in theirs)
    tokens = statistics.mean(row["tokens"] for row in ours)
    print(f"{'':12}{'engine':>10}{'sequential':>12}{'ratio':>8}")
    print(f"{'s/iteration':12}{mean[0]:10.3f}{mean[1]:12.3f}{mean[1] / mean[0]:8.1f}")
    print(f"{'tokens/s':12}{tokens / mean[0]:10.0f}{tokens / mean[1]:12.0f}   ({tokens:.0f} tokens an iteration)")
    for part in ("sampling", "ranking", "critic", "generator"):
        mine, peer = parts.get(part, 0.0) / iterations, pair.theirs.seconds.get(part, 0.0) / iterations
        print(f"  {part:10}{mine:10.3f}{peer:12.3f}{peer / mine:8.1f}   {mine / mean[0]:4.0%} of ours")


def check(pair: Pair, ours: dict[str, float], theirs: dict[str, float]) -> None:
    """Equal tokens so far, and equal losses to rounding, or an error."""
    if pair.said != pair.theirs.said:
        raise SystemExit("the two sides said different things")
    for name in LOSSES:
        if abs(ours[name] - theirs[name]) > 1e-4 * max(1.0, abs(theirs[name])):
            raise SystemExit(f"{name}: {ours[name]} here, {theirs[name]} there")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[500, 32_000])
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    for vocabulary in options.vocabulary:
        measure(vocabulary, options.iterations)


if __name__ == "__main__":
    main()
