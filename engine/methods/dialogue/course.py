"""The course of a training stage: evaluate, iterate, checkpoint, stop when asked, and leave the best model behind.

A method hands over its parts as a `Trainee`; what an iteration does is the method's. All randomness is a function of
the seed and of counters, so a checkpoint needs no generator's state beyond what the trainee keeps.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from engine.errors import ResumeError
from engine.methods.dialogue.evaluation import Played, evaluate
from engine.methods.dialogue.play import Costs, Speaker, Valuer
from engine.runtime.context import Restored, SaveModel, StageContext, Stopped
from engine.runtime.seeds import derive

PRIMARY = "train"
"""The split whose score picks the best checkpoint: choosing by another would leak it."""


class Trainee(Protocol):
    """What a method trains, one iteration at a time."""

    costs: Costs
    speakers: Mapping[str, Speaker]
    """The policy in the game of every split that is played."""

    @property
    def ready(self) -> bool:
        """False while something must be gathered before the first iteration."""

    def gather(self) -> None:
        """A part of that gathering, short enough to be stopped after."""

    def iterate(self, number: int) -> dict[str, float]:
        """Iteration `number`, counted from 1; returns its metrics."""

    def rankings(self) -> Sequence[tuple[str, int, Valuer | None]]:
        """What is evaluated: a metric's name, candidates a decision, and who ranks them.

        The first decides which checkpoint is `best`, and where it is equal the next does.
        """

    def models(self) -> Mapping[str, SaveModel]:
        """Writers of Hugging Face directories."""

    def state(self) -> dict[str, Any]:
        """Everything that an iteration changes."""

    def load_state(self, state: Mapping[str, Any]) -> None: ...


class Course:
    """Runs a trainee through its iterations under a stage context."""

    def __init__(self, ctx: StageContext, trainee: Trainee, *, iterations: int, checkpoint_every: int) -> None:
        self._ctx, self._trainee = ctx, trainee
        self._iterations, self._checkpoint_every = iterations, checkpoint_every
        plan = ctx.config["evaluation"]
        self._every, self._runs = int(plan["every"]), int(plan["runs_per_item"])
        self._splits = plan.get("splits")
        self._step = 0
        self._best: tuple[list[float], int] | None = None
        self._evaluated = -1

    def run(self) -> None:
        """From the newest checkpoint, or from the start, to the end; writes `best/` and `latest/`."""
        restored = self._ctx.restore()
        if restored is not None:
            self._resume(restored)
        if self._evaluated < 0:
            self._evaluate()
        while self._step < self._iterations:
            self._ctx.trace.step = self._step + 1
            while not self._trainee.ready:
                self._timed(self._trainee.gather)
                self._leave_if_asked()
            self._iterate()
            self._leave_if_asked()
        self._write("latest")

    def _iterate(self) -> None:
        number = self._step + 1
        started = time.perf_counter()
        metrics = self._trainee.iterate(number)
        seconds = time.perf_counter() - started
        self._trainee.costs.seconds += seconds
        self._step = number
        self._ctx.log(number, {**metrics, "iteration_seconds": seconds, **self._costs()})
        self._ctx.progress(number, self._iterations, "training")
        if number % self._every == 0 or number == self._iterations:
            self._evaluate()
        elif number % self._checkpoint_every == 0:
            self._checkpoint()

    def _timed(self, work: Any) -> None:
        started = time.perf_counter()
        work()
        self._trainee.costs.seconds += time.perf_counter() - started

    def _costs(self) -> dict[str, float]:
        return {f"cost/{name}": value for name, value in self._trainee.costs.as_dict().items()}

    def _leave_if_asked(self) -> None:
        if self._ctx.should_stop:
            self._checkpoint()
            raise Stopped

    def _evaluate(self) -> None:
        """Evaluate the present step, once, on every split; then checkpoint, as `best` if it is."""
        if self._evaluated == self._step:
            return
        scores: list[float] = []  # of the first split, in the order of the rankings
        for split, speaker in self._trainee.speakers.items():
            if self._splits is not None and split not in self._splits:
                continue
            speaker.sampler.refresh()  # a resumed run starts here without any cached activations
            means = []
            for metric, candidates, valuer in self._trainee.rankings():
                played = self._play(speaker, split, candidates, valuer)
                self._report(played, metric, first=metric == self._trainee.rankings()[0][0])
                means.append(round(played.mean, 9))  # equal is equal, in whatever order it was summed
            scores = scores or means
        self._evaluated = self._step
        if scores and (self._best is None or scores > self._best[0]):
            self._best = (scores, self._step)
            self._checkpoint()
            self._write("best")
        else:
            self._checkpoint()

    def _play(self, speaker: Speaker, split: str, candidates: int, valuer: Valuer | None) -> Played:
        seed = derive(self._ctx.seed, "evaluation", split)
        return evaluate(speaker, split, runs=self._runs, candidates=candidates, valuer=valuer, seed=seed)

    def _report(self, played: Played, metric: str, *, first: bool) -> None:
        ctx, costs = self._ctx, self._trainee.costs
        ctx.evaluation(played.evaluation(self._step, metric, ctx.functions.hash, costs))
        name = metric if played.split == PRIMARY else f"{played.split}/{metric}"
        ctx.log(self._step, {name: played.mean})
        if first:
            ctx.sample(*played.samples(self._step))

    def _checkpoint(self) -> Path:
        labels = ["latest"]
        if self._best is not None and self._best[1] == self._step:
            labels.append("best")
        state = {
            "trainee": self._trainee.state(),
            "costs": asdict(self._trainee.costs),
            "best": None if self._best is None else list(self._best),
            "evaluated": self._evaluated,
        }
        return self._ctx.checkpoint(self._step, state, models=self._trainee.models(), labels=labels)

    def _write(self, name: str) -> None:
        """The models as they are, as a part of the stage's artifact."""
        folder = self._ctx.output_dir / name
        shutil.rmtree(folder, ignore_errors=True)
        for model, save in self._trainee.models().items():
            (folder / model).mkdir(parents=True)
            save(folder / model)

    def _resume(self, restored: Restored) -> None:
        state = restored.state
        self._step = restored.step
        self._trainee.load_state(state["trainee"])
        costs = self._trainee.costs
        for key, value in state["costs"].items():
            setattr(costs, key, value)
        self._evaluated = int(state["evaluated"])
        if state["best"] is not None:
            self._best = ([float(score) for score in state["best"][0]], int(state["best"][1]))
            source = best_checkpoint(restored, self._best[1])
            for model in self._trainee.models():
                shutil.copytree(source / model, self._ctx.output_dir / "best" / model, dirs_exist_ok=True)


def best_checkpoint(restored: Restored, step: int) -> Path:
    """Where the checkpoint of `step` is: that very one, or a sibling from this or an earlier attempt."""
    if restored.step == step:
        return restored.path
    found = sorted(restored.path.parent.parent.glob(f"attempt-*/step-{step}"))
    if not found:
        raise ResumeError(f"the best checkpoint, of step {step}, is gone from {restored.path.parent.parent}")
    return found[-1]
