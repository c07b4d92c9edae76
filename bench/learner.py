"""Training tokens a second of our learner and of TRL, on the same weights, batches, precision and losses.

    python bench/learner.py [--method sft reward] [--size tiny small] [--steps 24] [--threads 2]

Supervised fine-tuning and reward models on a Llama of random weights in float32, of conversations of realistic spread:
a system message that all share, prompts and answers of log-normal lengths. Tokens are real ones: padding counts for
nobody, and the prompt of a preference counts for both its answers, though we read it once. TRL runs as it is by
default, and in its documented modes that are faster: without gradient checkpointing, and for SFT also without padding.
All take turns step by step, so that the machine's moods hit them alike; the losses of every step are compared.
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
from functools import partial
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from engine.lm.heads import ScalarHead
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import Policy
from engine.lm.scratch import train_tokenizer
from engine.lm.shares import cut
from engine.lm.supervised import Example, completion_loss, quick_order
from engine.methods.reward import pairs
from engine.methods.reward.pairs import Pair
from engine.methods.reward.stages import pair_loss

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


def rows(method: str, count: int, seed: int) -> list[Any]:
    """Examples, or pairs, of 36 to 204 tokens an answer with its prompt, half of them below 110 or so."""
    rng = np.random.default_rng(seed)
    system = rng.integers(10, VOCABULARY, SYSTEM).tolist()

    def text() -> list[int]:
        size = int(np.clip(rng.lognormal(np.log(40), 0.7), 6, 180))
        return list(rng.integers(10, VOCABULARY, size).tolist())

    found: list[Any] = []
    for _ in range(count):
        prompt, answer = [*system, *text()], text()
        found.append(
            Example(prompt, answer, [True] * len(answer)) if method == "sft" else Pair(prompt, answer, text(), 0.0)
        )
    return found


def tokens(row: Any) -> int:
    """Of an example, or of both sequences of a pair."""
    return row.length + (len(row.prompt) if isinstance(row, Pair) else 0)


def longest(row: Any) -> int:
    """The longest sequence of a row."""
    return row.length if isinstance(row, Example) else len(row.prompt) + max(len(row.chosen), len(row.rejected))


def model(method: str, size: str) -> nn.Module:
    """The same random weights every time."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=1024, pad_token_id=1, **SIZES[size])
    if method == "sft":
        return LlamaForCausalLM(config)
    config.num_labels = 1
    return LlamaForSequenceClassification(config)


def ours(method: str, size: str, batches: Sequence[Sequence[Any]]) -> Iterator[Timed]:
    """Our learner, a step each time it is asked for one."""
    module = model(method, size).train()
    policy, head = Policy(module, None), ScalarHead(module, None)
    learner = Learner(module, LearnerSettings(lr=LR))
    for batch in batches:
        began = time.perf_counter()
        if method == "sft":
            order, loss = quick_order(policy, batch), lambda chosen: completion_loss(policy, chosen)
        else:
            order, loss = pairs.quick_order(batch), lambda chosen: pair_loss(head, chosen)
        cut_up = cut(order, [one.length for one in batch], 8192)
        told = learner.step(loss, ([batch[index] for index in part] for part in cut_up))
        yield Timed(told["loss"], time.perf_counter() - began)


def trl(method: str, size: str, batches: Sequence[Sequence[Any]], **options: Any) -> Iterator[Timed]:
    """TRL's trainer, a step each time: in a process of its own, for its libraries keep the state of one trainer."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_train, args=(there, torch.get_num_threads(), method, size, batches, options), daemon=True
    )
    process.start()
    there.close()
    try:
        for _ in batches:
            here.send("go")
            yield Timed(*here.recv())
    finally:
        process.kill()


def _train(
    turns: Connection, threads: int, method: str, size: str, batches: Sequence[Sequence[Any]], options: dict[str, Any]
) -> None:
    """A step for each word that comes; back go its loss and its seconds."""
    import datasets
    from transformers import PrinterCallback, TrainerCallback
    from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

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

    class Trainer(SFTTrainer if method == "sft" else RewardTrainer):  # type: ignore[misc]
        def training_step(self, *arguments: Any, **more: Any) -> Any:
            loss = super().training_step(*arguments, **more)
            callback.loss = float(loss)
            return loss

    with tempfile.TemporaryDirectory() as folder:
        config = (SFTConfig if method == "sft" else RewardConfig)(
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
            **({"dataset_kwargs": {"skip_prepare_dataset": True}} if method == "sft" else {}),
            **options,
        )
        tokenizer = train_tokenizer(["a"], 262)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
        trainer = Trainer(
            model=model(method, size),
            args=config,
            train_dataset=datasets.Dataset.from_list([_as_trl_has_it(row) for batch in batches for row in batch]),
            processing_class=tokenizer,
            callbacks=[callback],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _as_trl_has_it(row: Any) -> dict[str, list[int]]:
    if isinstance(row, Example):
        return {"input_ids": [*row.prompt, *row.rest], "labels": [-100] * len(row.prompt) + list(row.rest)}
    return {"chosen_ids": [*row.prompt, *row.chosen], "rejected_ids": [*row.prompt, *row.rejected]}


def ways(method: str) -> dict[str, Callable[[str, str, Sequence[Sequence[Any]]], Iterator[Timed]]]:
    """Ours, and TRL's where it is installed."""
    if find_spec("trl") is None:
        return {"rlx": ours}
    found = {
        "rlx": ours,
        "TRL, default": trl,
        "TRL, no checkpointing": partial(trl, gradient_checkpointing=False),
    }
    if method == "sft":
        found["TRL, padding-free"] = partial(trl, gradient_checkpointing=False, padding_free=True)
    return found


def main() -> None:
    """Print a table a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=["sft", "reward"], default=["sft", "reward"])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")  # TRL's and transformers' advice
    torch.set_num_threads(given.threads)
    if find_spec("trl") is None:
        print("TRL is absent: its rows are left out (pip install -c constraints.txt -e '.[bench]')\n")
    for method in given.method:
        for size in given.size:
            measure(method, size, given.steps, given.batch)


def measure(method: str, size: str, steps: int, batch: int) -> None:
    """Print one table."""
    found = rows(method, steps * batch, seed=1)
    batches = [found[first : first + batch] for first in range(0, len(found), batch)]
    a_row = 1 if method == "sft" else 2
    padded = sum(max(map(longest, some)) * len(some) * a_row for some in batches)
    real = [sum(map(tokens, some)) for some in batches]
    print(f"{method}, {size}: {steps} steps of {batch}, {sum(real) / padded:.0%} of a padded batch is text\n")
    running = {name: iter(make(method, size, batches)) for name, make in ways(method).items()}
    told: dict[str, list[Timed]] = {name: [] for name in running}
    for _ in range(steps):
        for name, turns in running.items():
            told[name].append(next(turns))
    print("| way | real tokens a second | ours ×, step by step | largest difference of a loss |")
    print("| --- | --- | --- | --- |")
    for name, found_steps in told.items():
        warm = list(zip(real, told["rlx"], found_steps, strict=True))[2:]
        rate = statistics.median(count / step.seconds for count, _, step in warm)
        ratio = statistics.median(step.seconds / mine.seconds for _, mine, step in warm)
        apart = max(abs(mine.loss - step.loss) for mine, step in zip(told["rlx"], found_steps, strict=True))
        print(f"| {name} | {rate:,.0f} | {ratio:.2f} | {apart:.1e} |")
    print(flush=True)


if __name__ == "__main__":
    main()
