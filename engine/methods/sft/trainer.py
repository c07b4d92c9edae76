"""The course of supervised training: steps over shuffled conversations, evaluations, checkpoints, the best model kept.

All order is a function of the seed and the step, so a checkpoint needs no generator's state.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence

import numpy as np

from engine.errors import DataError
from engine.lm.learner import Learner
from engine.lm.policy import Policy
from engine.lm.supervised import Example, completion_loss, mean_logps, parts
from engine.methods.dialogue.course import best_checkpoint
from engine.methods.sft.config import SFT
from engine.runtime.context import Evaluation, ItemScore, Restored, StageContext, Stopped
from engine.runtime.seeds import derive
from engine.store.fingerprints import Layer

STEPS = "steps.json"
"""Of what step the models are that training leaves."""
METRIC = "logp"
"""Mean log-probability of an item's learnt tokens, in nats: 0 at most, higher is better."""


class Schedule:
    """Which conversations each step learns from: every one once an epoch, in an order of that epoch's own."""

    def __init__(self, count: int, config: SFT, seed: int) -> None:
        self._count, self._size, self._seed = count, min(config.batch_size, count), seed
        self._an_epoch = math.ceil(count / self._size)
        self.steps = config.steps or config.epochs * self._an_epoch

    def batch(self, step: int) -> np.ndarray:
        """Indices of step `step`, counted from 1."""
        epoch, place = divmod(step - 1, self._an_epoch)
        order = np.random.default_rng(derive(self._seed, "epoch", epoch)).permutation(self._count)
        return order[place * self._size : (place + 1) * self._size]


class Trainer:
    """Trains a policy on examples under a stage context; writes `best/policy` and `latest/policy`."""

    def __init__(
        self,
        ctx: StageContext,
        config: SFT,
        policy: Policy,
        learner: Learner,
        splits: Mapping[str, Sequence[Example | None]],
    ) -> None:
        self._ctx, self._config, self._policy, self._learner, self._splits = ctx, config, policy, learner, splits
        first, *_ = splits
        self._kept = [example for example in splits[first] if example is not None]
        if not self._kept:
            raise DataError(f"nothing to learn is left of any conversation within max_tokens: {config.max_tokens}")
        self._schedule = Schedule(len(self._kept), config, ctx.seed)
        self._every = int(ctx.config["evaluation"]["every"])
        self._evaluated = -1
        self._best: tuple[float, int] | None = None
        self._seconds, self._tokens = 0.0, 0

    @staticmethod
    def steps(count: int, config: SFT) -> int:
        """How many there will be with `count` conversations."""
        return Schedule(count, config, 0).steps

    def run(self) -> None:
        """From the newest checkpoint, or from the start, to the end."""
        ctx, learner, total = self._ctx, self._learner, self._schedule.steps
        if (restored := ctx.restore()) is not None:
            self._resume(restored)
        if self._evaluated < 0:
            self._evaluate()
        while learner.steps < total:
            self._step()
            if learner.steps % self._every == 0 or learner.steps == total:
                self._evaluate()
            elif ctx.should_stop or learner.steps % self._config.checkpoint_every == 0:
                self._checkpoint()
            if ctx.should_stop:
                raise Stopped
        self._write("latest")
        steps = {"best": total if self._best is None else self._best[1], "latest": total}
        (ctx.output_dir / STEPS).write_text(json.dumps(steps), encoding="utf-8")

    def _step(self) -> None:
        number = self._learner.steps + 1
        began = time.perf_counter()
        chosen = self._schedule.batch(number)
        self._ctx.trace.step = number
        self._ctx.trace.note(Layer.DATA, chosen)
        batch = [self._kept[int(index)] for index in chosen]
        self._policy.model.train()
        metrics = self._learner.step(
            lambda part: completion_loss(self._policy, [batch[index] for index in part]),
            parts(self._policy, batch, self._config.batch_tokens),
        )
        self._policy.model.eval()
        seconds, tokens = time.perf_counter() - began, sum(example.length for example in batch)
        self._seconds, self._tokens = self._seconds + seconds, self._tokens + tokens
        told = {f"train/{name}": value for name, value in metrics.items()}
        self._ctx.log(
            number, {**told, "train/tokens_per_second": tokens / seconds, "cost/trained_tokens": self._tokens}
        )
        self._ctx.progress(number, self._schedule.steps, "training")

    def _evaluate(self) -> None:
        """The log-probability of every split, once a step; then a checkpoint, as `best` if it is."""
        step, means = self._learner.steps, {}
        if self._evaluated == step:
            return
        for split, examples in self._splits.items():
            evaluation = evaluated(self._policy, examples, split, step, self._config.batch_tokens, self.cost)
            self._ctx.evaluation(evaluation)
            means[split] = sum(item.scores[0] for item in evaluation.items) / len(evaluation.items)
            self._ctx.log(step, {METRIC if split == "train" else f"{split}/{METRIC}": means[split]})
        self._evaluated = step
        by = self._config.best_by
        if by is None or self._best is None or means[by] > self._best[0]:
            self._best = (means[by] if by is not None else 0.0, step)
            self._checkpoint()
            self._write("best")
        else:
            self._checkpoint()

    @property
    def cost(self) -> dict[str, float]:
        """Where on the learning curve this is."""
        return {"trained_tokens": float(self._tokens), "seconds": self._seconds}

    def _checkpoint(self) -> None:
        labels = ["latest", *(["best"] if self._best is not None and self._best[1] == self._learner.steps else [])]
        state = {
            "learner": self._learner.state(),
            "evaluated": self._evaluated,
            "best": None if self._best is None else list(self._best),
            "seconds": self._seconds,
            "tokens": self._tokens,
        }
        self._ctx.checkpoint(self._learner.steps, state, models={"policy": self._policy.save}, labels=labels)

    def _write(self, name: str) -> None:
        folder = self._ctx.output_dir / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "policy").mkdir(parents=True)
        self._policy.save(folder / "policy")

    def _resume(self, restored: Restored) -> None:
        state = restored.state
        self._learner.load_state(state["learner"])
        self._evaluated, self._tokens = int(state["evaluated"]), int(state["tokens"])
        self._seconds = float(state["seconds"])
        if state["best"] is not None:
            self._best = (float(state["best"][0]), int(state["best"][1]))
            source = best_checkpoint(restored, self._best[1])
            shutil.copytree(source / "policy", self._ctx.output_dir / "best" / "policy", dirs_exist_ok=True)


def evaluated(
    policy: Policy,
    examples: Sequence[Example | None],
    split: str,
    step: int,
    batch_tokens: int,
    cost: Mapping[str, float],
    *,
    metric: str = METRIC,
) -> Evaluation:
    """The mean log-probability of the learnt tokens of each item; an item without any is left out."""
    known = [(number, example) for number, example in enumerate(examples) if example is not None]
    if not known:
        raise DataError(f"the split {split!r} has no conversation of which anything is left within max_tokens")
    means = mean_logps(policy, [example for _, example in known], batch_tokens)
    items = [ItemScore(number, (mean,)) for (number, _), mean in zip(known, means, strict=True)]
    return Evaluation(step=step, metric=metric, items=items, split=split, cost=cost)
