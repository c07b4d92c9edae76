"""Training tokens a second of our learner and of TRL, on the same weights, batches, precision and losses.

    python bench/learner.py [--size tiny small] [--steps 12] [--threads 2]

Supervised fine-tuning of a Llama of random weights in float32, on conversations of realistic spread: a system message
that all share, prompts and completions of log-normal lengths. Tokens are real ones: padding counts for nobody. TRL runs
as it is by default, and in its documented modes that are faster: without gradient checkpointing, and also without
padding. All take turns step by step, so that the machine's moods hit them alike; the losses of every step are compared.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import Policy
from engine.lm.scratch import train_tokenizer
from engine.lm.supervised import Example, completion_loss, parts

SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    "small": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
}
VOCABULARY, SYSTEM = 32_000, 24
"""Entries of the output layer; tokens of the system message."""
LR = 1e-4


@dataclass(frozen=True)
class Timed:
    """One optimiser step."""

    loss: float
    seconds: float


def conversations(count: int, seed: int) -> list[Example]:
    """Examples of 30 to 400 tokens, half of them below 110 or so."""
    rng = np.random.default_rng(seed)
    system = rng.integers(10, VOCABULARY, SYSTEM).tolist()
    found = []
    for _ in range(count):
        asked, said = (int(np.clip(rng.lognormal(np.log(middle), 0.7), 6, 180)) for middle in (40, 40))
        rest = rng.integers(10, VOCABULARY, said).tolist()
        found.append(Example([*system, *rng.integers(10, VOCABULARY, asked).tolist()], rest, [True] * said))
    return found


def model(size: str) -> LlamaForCausalLM:
    """The same random weights every time."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=1024, **SIZES[size]))


def ours(size: str, batches: Sequence[Sequence[Example]]) -> Iterator[Timed]:
    """Our learner, a step each time it is asked for one."""
    policy = Policy(model(size).train(), None)
    learner = Learner(policy.model, LearnerSettings(lr=LR))
    for batch in batches:
        began = time.perf_counter()
        told = learner.step(
            lambda part, batch=batch: completion_loss(policy, [batch[index] for index in part]),
            parts(policy, batch, 8192),
        )
        yield Timed(told["loss"], time.perf_counter() - began)


def trl(size: str, batches: Sequence[Sequence[Example]], **options: Any) -> Iterator[Timed]:
    """TRL's trainer, a step each time: in a process of its own, for its libraries keep the state of one trainer."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_train, args=(there, torch.get_num_threads(), size, batches, options), daemon=True
    )
    process.start()
    there.close()
    try:
        for _ in batches:
            here.send("go")
            yield Timed(*here.recv())
    finally:
        process.kill()


def _train(turns: Connection, threads: int, size: str, batches: Sequence[Sequence[Example]], options: Any) -> None:
    """A step for each word that comes; back go its loss and its seconds."""
    import datasets
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)

    class Turns(TrainerCallback):
        began, loss = 0.0, 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.recv()
            self.began = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.send((self.loss, time.perf_counter() - self.began))

    callback = Turns()

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def training_step(self, *arguments: Any, **more: Any) -> Any:
            loss = super().training_step(*arguments, **more)
            callback.loss = float(loss)
            return loss

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=len(batches[0]),
            max_steps=len(batches),
            learning_rate=LR,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=True,
            train_sampling_strategy="sequential",
            max_length=None,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
            **options,
        )
        rows = [
            {"input_ids": [*e.prompt, *e.rest], "labels": [-100] * len(e.prompt) + list(e.rest)}
            for batch in batches
            for e in batch
        ]
        Trainer(
            model=model(size),
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=train_tokenizer(["a"], 262),
            callbacks=[callback],
        ).train()


WAYS: dict[str, Callable[[str, Sequence[Sequence[Example]]], Any]] = {
    "rlx": ours,
    "TRL, default": trl,
    "TRL, no checkpointing": lambda size, batches: trl(size, batches, gradient_checkpointing=False),
    "TRL, padding-free": lambda size, batches: trl(size, batches, gradient_checkpointing=False, padding_free=True),
}


def main() -> None:
    """Print a table a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # TRL's and transformers' advice
    torch.set_num_threads(given.threads)
    for size in given.size:
        rows = conversations(given.steps * given.batch, seed=1)
        batches = [rows[first : first + given.batch] for first in range(0, len(rows), given.batch)]
        longest = [max(e.length for e in batch) * len(batch) for batch in batches]
        real = [sum(e.length for e in batch) for batch in batches]
        print(
            f"{size}: {given.steps} steps of {given.batch}, {sum(real) / sum(longest):.0%} of a padded batch is text\n"
        )
        running = {name: iter(make(size, batches)) for name, make in WAYS.items()}
        told: dict[str, list[Timed]] = {name: [] for name in running}
        for _ in range(given.steps):
            for name, steps in running.items():
                told[name].append(next(steps))
        rates = {
            name: statistics.median(tokens / step.seconds for tokens, step in list(zip(real, steps, strict=True))[2:])
            for name, steps in told.items()
        }
        print("| way | real tokens a second | ours ×, step by step | largest difference of a loss |")
        print("| --- | --- | --- | --- |")
        for name, steps in told.items():
            apart = max(abs(a.loss - b.loss) for a, b in zip(told["rlx"], steps, strict=True))
            ratio = statistics.median(b.seconds / a.seconds for a, b in list(zip(told["rlx"], steps, strict=True))[2:])
            print(f"| {name} | {rates[name]:,.0f} | {ratio:.2f} | {apart:.1e} |")
        print(flush=True)


if __name__ == "__main__":
    main()
