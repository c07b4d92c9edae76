"""The course of training on a fixed set of examples: steps over shuffled ones, evaluations, the best model kept.

All order is a function of the seed and the step, so a checkpoint needs no generator's state. What an example is, its
loss, and what is evaluated, the method hands over as a `Work`.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from engine.errors import DataError
from engine.lm.learner import Hollow, Learner, LearnerSettings, LossOutput
from engine.lm.prefetch import made_ahead
from engine.lm.shares import own_parts
from engine.methods.dialogue.course import best_checkpoint
from engine.methods.supervised.config import Training
from engine.runtime.context import Evaluation, Restored, SaveModel, StageContext, Stopped
from engine.runtime.follower import NOWHERE
from engine.runtime.seeds import derive, seed_torch
from engine.store.fingerprints import Layer

STEPS = "steps.json"
"""Of what step the models are that training leaves."""
Cost = Mapping[str, float]


@dataclass(frozen=True)
class Work:
    """What a method trains on its examples."""

    module: nn.Module
    tokens: Sequence[int]
    """Of each training example."""
    weights: Sequence[float]
    """Of each training example, the units that its loss is summed over."""
    order: Callable[[Sequence[int]], Sequence[int]]
    """Places among these examples, in an order in which neighbours are quick to compute at once."""
    collate: Callable[[Sequence[int]], Any]
    """A batch of examples by their indices, in main memory. Draws nothing: it may be called ahead, in a thread."""
    loss: Callable[[Any], LossOutput]
    """The loss of a batch."""
    evaluate: Callable[[int, Cost], Sequence[Evaluation]]
    """Every split at a step; of several metrics the first one decides which checkpoint is best."""
    model: str
    """What the model is called in checkpoints."""
    save: SaveModel
    """In all ranks; the first one writes."""


@dataclass(frozen=True)
class Drawn:
    """A part of a step's examples, ready to be computed."""

    step: int
    chosen: list[int]
    """All examples of the step, in the order in which they were drawn."""
    batch: Any
    last: bool
    """Whether the step has no further part."""


class Schedule:
    """Which examples each step learns from: every one once an epoch, in an order of that epoch's own."""

    def __init__(self, count: int, config: Training, seed: int) -> None:
        if not count:
            raise DataError(f"nothing to learn is left of any example within max_tokens: {config.max_tokens}")
        self._count, self._size, self._seed = count, min(config.batch_size, count), seed
        self._an_epoch = math.ceil(count / self._size)
        self.steps = config.steps or config.epochs * self._an_epoch

    def batch(self, step: int) -> np.ndarray:
        """Indices of step `step`, counted from 1."""
        epoch, place = divmod(step - 1, self._an_epoch)
        order = np.random.default_rng(derive(self._seed, "epoch", epoch)).permutation(self._count)
        return order[place * self._size : (place + 1) * self._size]


def settings(config: Training, schedule: Schedule) -> LearnerSettings:
    """The learner's, for so many steps."""
    return LearnerSettings(
        lr=config.lr,
        weight_decay=config.weight_decay,
        clip_norm=config.grad_clip,
        schedule=config.schedule,
        warmup_steps=int(config.warmup * schedule.steps),
        total_steps=schedule.steps,
    )


class Course:
    """Takes a learner through its steps under a stage context; leaves `best/` and `latest/` with the model in each."""

    def __init__(self, ctx: StageContext, config: Training, work: Work, learner: Learner, schedule: Schedule) -> None:
        self._ctx, self._config, self._work = ctx, config, work
        self._learner, self._schedule = learner, schedule
        self._every = int(ctx.config["evaluation"]["every"])
        self._evaluated = -1
        self._best: tuple[float, int] | None = None
        self._seconds, self._tokens = 0.0, 0

    def run(self) -> None:
        """From the newest checkpoint, or from the start, to the end."""
        ctx, learner, total = self._ctx, self._learner, self._schedule.steps
        if (restored := ctx.restore()) is not None:
            self._resume(restored)
        if self._evaluated < 0:
            self._evaluate()
        with made_ahead(self._drawn(learner.steps + 1), ctx.device) as drawn:
            while learner.steps < total:
                self._step(drawn)
                if learner.steps % self._every == 0 or learner.steps == total:
                    self._evaluate()
                elif ctx.should_stop or learner.steps % self._config.checkpoint_every == 0:
                    self._checkpoint()
                if ctx.should_stop:
                    raise Stopped
        self._write("latest")
        if ctx.world.rank > 0:
            return
        steps = {"best": total if self._best is None else self._best[1], "latest": total}
        (ctx.output_dir / STEPS).write_text(json.dumps(steps), encoding="utf-8")

    def _drawn(self, first: int) -> Iterator[Drawn]:
        """What each step learns from, from step `first` on; a function of the seed and the step alone."""
        work = self._work
        for number in range(first, self._schedule.steps + 1):
            chosen = self._schedule.batch(number).tolist()
            ordered = [chosen[place] for place in work.order(chosen)]
            parts = own_parts(ordered, work.tokens, self._config.batch_tokens, self._ctx.world)
            for left, part in zip(reversed(range(len(parts))), parts, strict=True):
                hollow = isinstance(part, Hollow)
                batch = work.collate(part.batch if isinstance(part, Hollow) else part)
                yield Drawn(number, chosen, Hollow(batch) if hollow else batch, last=left == 0)

    def _step(self, drawn: Iterator[Drawn]) -> None:
        number, work = self._learner.steps + 1, self._work
        began = time.perf_counter()
        first = next(drawn)
        chosen = first.chosen
        assert first.step == number, "batches come in the order of the steps"
        self._ctx.trace.step = number
        self._ctx.trace.note(Layer.DATA, chosen)
        seed_torch(derive(self._ctx.seed, "step", number, self._ctx.world.rank))  # what a layer drops out
        work.module.train()
        metrics = self._learner.step(work.loss, _batches(first, drawn), sum(work.weights[index] for index in chosen))
        work.module.eval()
        seconds, tokens = time.perf_counter() - began, sum(work.tokens[index] for index in chosen)
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + tokens
        told = {f"train/{name}": value for name, value in metrics.items()}
        self._ctx.log(
            number, {**told, "train/tokens_per_second": tokens / seconds, "cost/trained_tokens": self._tokens}
        )
        self._ctx.progress(number, self._schedule.steps, "training")

    def _evaluate(self) -> None:
        """Every split, once a step; then a checkpoint, as `best` if it is."""
        step, by = self._learner.steps, self._config.best_by
        if self._evaluated == step:
            return
        decides: float | None = None
        for evaluation in self._work.evaluate(step, {"trained_tokens": float(self._tokens), "seconds": self._seconds}):
            self._ctx.evaluation(evaluation)
            value = mean(evaluation)
            split = "" if evaluation.split == "train" else f"{evaluation.split}/"
            self._ctx.log(step, {f"{split}{evaluation.metric}": value})
            if evaluation.split == by and decides is None:
                decides = value
        self._evaluated = step
        if decides is None or self._best is None or decides > self._best[0]:
            self._best = (decides or 0.0, step)
            self._checkpoint()
            self._write("best")
        else:
            self._checkpoint()

    def _checkpoint(self) -> None:
        labels = ["latest", *(["best"] if self._best is not None and self._best[1] == self._learner.steps else [])]
        state = {
            "learner": self._learner.state(),
            "evaluated": self._evaluated,
            "best": None if self._best is None else list(self._best),
            "seconds": self._seconds,
            "tokens": self._tokens,
        }
        models = {self._work.model: self._work.save}
        self._ctx.checkpoint(self._learner.steps, state, models=models, labels=labels)

    def _write(self, name: str) -> None:
        """The model as it is, as a part of the stage's artifact."""
        if self._ctx.world.rank > 0:
            self._work.save(NOWHERE)
            return
        folder = self._ctx.output_dir / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / self._work.model).mkdir(parents=True)
        self._work.save(folder / self._work.model)

    def _resume(self, restored: Restored) -> None:
        state = restored.state
        self._learner.load_state(state["learner"])
        self._evaluated, self._tokens = int(state["evaluated"]), int(state["tokens"])
        self._seconds = float(state["seconds"])
        if state["best"] is not None:
            self._best = (float(state["best"][0]), int(state["best"][1]))
            if self._ctx.world.rank > 0:
                return
            source, name = best_checkpoint(restored, self._best[1]), self._work.model
            shutil.copytree(source / name, self._ctx.output_dir / "best" / name, dirs_exist_ok=True)


def _batches(first: Drawn, rest: Iterator[Drawn]) -> Iterator[Any]:
    """All of one step."""
    part = first
    yield part.batch
    while not part.last:
        part = next(rest)
        yield part.batch


def mean(evaluation: Evaluation) -> float:
    """Over its items, each by its own mean."""
    items = evaluation.items
    return sum(sum(item.scores) / len(item.scores) for item in items) / len(items)


def trained(ctx: StageContext) -> tuple[Path, int]:
    """Where the trained models stand, and of which step: the best of training, or the checkpoint of `rlx eval`."""
    if (given := ctx.extra.get("checkpoint")) is not None:
        return Path(given["path"]), int(given["step"])
    steps = json.loads((ctx.inputs["train"] / STEPS).read_text(encoding="utf-8"))
    return ctx.inputs["train"] / "best", int(steps["best"])


def write_means(ctx: StageContext, evaluations: Sequence[Evaluation], name: str) -> None:
    """Report these, and leave their means as the stage's artifact."""
    table: dict[str, dict[str, float]] = {}
    for evaluation in evaluations:
        ctx.evaluation(evaluation)
        table.setdefault(evaluation.metric, {})[evaluation.split] = mean(evaluation)
    (ctx.output_dir / name).write_text(json.dumps(table, indent=1), encoding="utf-8")


def wanted_splits(ctx: StageContext, config: Training, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are trained on or evaluated while training."""
    wanted = ctx.config["evaluation"].get("splits")
    return {
        name: found
        for name, found in splits.items()
        if wanted is None or name in wanted or name in ("train", config.best_by)
    }
