"""The one training loop body: gradients of a pure loss, accumulated exactly, clipped, and one optimiser step.

A loss is a sum over some units (tokens, transitions) and says how many; the learner divides by their
total over all batches of a step, so how a step is cut into batches, and over how many ranks, changes nothing but
rounding. Which batches, and when to checkpoint, is the stage's business; how weights lie over ranks is `layout`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from engine.errors import ResumeError
from engine.lm import layout as layouts
from engine.lm.compiled import compile_layers
from engine.lm.layout import Adam, Layout, TorchLayout
from engine.plan.stage import Resources
from engine.runtime.context import SaveModel
from engine.runtime.stopwatch import spends
from engine.runtime.trace import SILENT, Trace
from engine.runtime.world import ALONE, World
from engine.store.fingerprints import Layer

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class LossOutput:
    """A loss summed over `weight` units, and metrics summed over the same."""

    loss: Tensor
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


LossFn = Callable[[Batch], LossOutput]
SaveWeights = Callable[[Path, Mapping[str, Tensor] | None], None]
"""Writes one Hugging Face directory, of these weights in place of the model's own."""


@dataclass(frozen=True)
class Hollow(Generic[Batch]):
    """A batch that is computed and does not count: shards ask for as many passes of every rank."""

    batch: Batch


_PROBED = 64
"""Entries of each weight whose bits are noted after a step: all of a large model's would take longer than the step."""


@dataclass(frozen=True)
class LearnerSettings:
    """Adam and its schedule."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled, as in AdamW; 0 is Adam."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None leaves them."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls from `lr` towards 0 over `total_steps`."""
    warmup_steps: int = 0
    total_steps: int | None = None


class Learner:
    """Trains what is trainable in one module."""

    def __init__(
        self,
        module: nn.Module,
        settings: LearnerSettings,
        *,
        precision: torch.dtype = torch.float32,
        trace: Trace = SILENT,
        resources: Resources | None = None,
        world: World = ALONE,
    ) -> None:
        if settings.schedule != "constant" and settings.total_steps is None:
            raise ValueError(f"a {settings.schedule} schedule needs total_steps")
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError("nothing in this module is trainable")
        self._settings, self.world = settings, world
        self._layout = _layout(module, settings, precision, resources or Resources(), world)
        self._named = self._layout.named
        self.trace = trace
        """Where each step is noted, and where whoever draws batches for this learner notes those."""
        self.steps = 0
        """Optimiser steps taken."""

    def rate(self) -> float:
        """The learning rate of the next step."""
        s, step = self._settings, self.steps
        warm = min(1.0, (step + 1) / (s.warmup_steps + 1))
        if s.schedule == "constant" or s.total_steps is None:
            return s.lr * warm
        progress = min(1.0, max(0, step - s.warmup_steps) / max(1, s.total_steps - s.warmup_steps))
        fall = 1.0 - progress if s.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return s.lr * warm * fall

    @spends("training")
    def step(
        self, loss_fn: LossFn[Batch], batches: Iterable[Batch | Hollow[Batch]], total: float | None = None
    ) -> dict[str, float]:
        """One optimiser step on the mean loss over all units of all batches, of all ranks.

        `total` is the number of units, where it is known beforehand; DeepSpeed asks for it. Returns the means of the
        loss and of its metrics, the gradient norm before clipping, and the rate.
        """
        sums: dict[str, float] = {}
        weight = 0.0
        for batch, last in _with_last(batches):
            hollow = isinstance(batch, Hollow)
            out = self._forward(loss_fn, batch.batch if isinstance(batch, Hollow) else batch)
            loss = out.loss * 0.0 if hollow else out.loss
            self._layout.backward(loss, total=total, last=last)
            weight += 0.0 if hollow else out.weight
            for name, value in {"loss": float(out.loss.detach()), **out.metrics}.items():
                sums[name] = sums.get(name, 0.0) + (0.0 if hollow else value)
        weight, *summed = self.world.total([weight, *sums.values()])
        if weight <= 0:
            raise ValueError("a step needs batches with a positive weight")
        if total is not None and not math.isclose(weight, total):
            raise ValueError(f"the batches weigh {weight}, and the step was said to weigh {total}")
        rate = self.rate()
        norm = self._layout.step(rate, weight)
        self.steps += 1
        if self.trace.on:
            self.trace.note(Layer.UPDATE, summed, weight, norm)
            self.trace.note(Layer.WEIGHTS, self._probe())
        means = {name: value / weight for name, value in zip(sums, summed, strict=True)}
        return means | {"grad_norm": norm, "lr": rate}

    def _forward(self, loss_fn: LossFn[Batch], batch: Batch) -> LossOutput:
        """The loss, computed where the layout can see it; hooks look for a tensor in what they hook."""
        told: list[LossOutput] = []

        def run() -> Tensor:
            told.append(loss_fn(batch))
            return told[0].loss

        with self._layout.autocast():
            loss = self._layout.call(run)
        return LossOutput(loss, told[0].weight, told[0].metrics)

    def apply(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """`function(*args)`, which reads the module, in every rank alike."""
        result: Tensor = self._layout.call(function, *args)
        return result

    def _probe(self) -> Tensor:
        """Evenly spaced entries of every trained weight."""
        flat = [weights.reshape(-1) for weights in self._layout.shown()]
        return torch.cat([weights[:: max(1, len(weights) // _PROBED)] for weights in flat])

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs: weights, moments, counters. Plain tensors and numbers, names as keys.

        It is whole whatever the layout, and the same for any number of ranks.
        """
        state = {"steps": self.steps, "weights": self._layout.weights(), "moments": self._layout.moments()}
        return state if self._layout.scaling is None else {**state, "scaling": self._layout.scaling}

    def saver(self, model: nn.Module, save: SaveWeights) -> SaveModel:
        """`save` for a model that lies in this learner's layout: all ranks call it, and the first one writes."""

        def save_whole(folder: Path) -> None:
            weights = self._layout.everything(model)
            if self.world.rank == 0:
                save(folder, weights)

        return save_whole

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. Raises ResumeError where it is not a state of this very learner."""
        scaling = set() if self._layout.scaling is None else {"scaling"}
        if set(state) != {"steps", "weights", "moments"} | scaling:
            more = " and the scaling of float16" if scaling else ""
            raise ResumeError(f"a learner's state has steps, weights and moments{more}, not {sorted(state)}")
        if set(state["weights"]) != set(self._named):
            odd = sorted(set(state["weights"]) ^ set(self._named))
            raise ResumeError(f"the checkpoint and the model disagree about trainable weights: {', '.join(odd[:5])}")
        if set(state["moments"]) - set(self._named):
            raise ResumeError("the checkpoint has optimiser moments of weights that the model does not train")
        if state["steps"] and (missing := sorted(set(self._named) - set(state["moments"]))):
            raise ResumeError(f"the optimiser's moments of {', '.join(missing[:5])} are missing from the checkpoint")
        shapes = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in self._named.items()}
        for name, shape in shapes.items():
            if shape != state["weights"][name].shape:
                raise ResumeError(f"the checkpoint's {name} has another shape than the model's")
        self._layout.load(state["weights"], state["moments"])
        if scaling:
            self._layout.scaling = [float(number) for number in state["scaling"]]
        self.steps = int(state["steps"])


def _layout(
    module: nn.Module, settings: LearnerSettings, precision: torch.dtype, resources: Resources, world: World
) -> Layout:
    """The layout that the hardware asks for."""
    adam = Adam(settings.betas, settings.eps, settings.weight_decay, settings.clip_norm)
    if resources.compile:
        compile_layers(module)
    if resources.checkpoint_activations or world.size > 1:
        layouts.through_layers(module, checkpoint=resources.checkpoint_activations)
    if resources.launcher == "deepspeed":
        from engine.lm.layout_deepspeed import ZeroLayout

        return ZeroLayout(module, adam, precision, resources)
    if world.size == 1:
        return TorchLayout(module, adam, precision, layouts.alone())
    if resources.parallel == "fsdp":
        return TorchLayout(module, adam, precision, layouts.shards(module, world.size, precision))
    return TorchLayout(module, adam, precision, layouts.replicas(module, world.size))


def _with_last(items: Iterable[Batch]) -> Iterable[tuple[Batch, bool]]:
    """Each item, and whether it is the last."""
    held: list[Batch] = []
    for item in items:
        if held:
            yield held.pop(), False
        held.append(item)
    for item in held:
        yield item, True
