"""The one training loop body: gradients of a pure loss, accumulated exactly, clipped, and one optimiser step.

A loss is a sum over some units (tokens, transitions) and says how many; the learner divides by their
total over all batches of a step, so how a step is cut into batches changes nothing but rounding. Which
batches, and when to checkpoint, is the stage's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from engine.errors import ResumeError
from engine.runtime.stopwatch import spends
from engine.runtime.trace import SILENT, Trace
from engine.store.fingerprints import Layer

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class LossOutput:
    """A loss summed over `weight` units, and metrics summed over the same."""

    loss: Tensor
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


LossFn = Callable[[Batch], LossOutput]

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
    ) -> None:
        if settings.schedule != "constant" and settings.total_steps is None:
            raise ValueError(f"a {settings.schedule} schedule needs total_steps")
        self._settings = settings
        self._named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self._named:
            raise ValueError("nothing in this module is trainable")
        self._parameters = list(self._named.values())
        self._device = self._parameters[0].device
        self._precision = precision
        self.trace = trace
        """Where each step is noted, and where whoever draws batches for this learner notes those."""
        self._optimiser = torch.optim.AdamW(
            self._parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )
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
    def step(self, loss_fn: LossFn[Batch], batches: Iterable[Batch]) -> dict[str, float]:
        """One optimiser step on the mean loss over all units of all batches.

        Returns the means of the loss and of its metrics, the gradient norm before clipping, and the rate.
        """
        sums: dict[str, float] = {}
        total = 0.0
        for batch in batches:
            with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
                out = loss_fn(batch)
            torch.autograd.backward(out.loss)
            total += out.weight
            for name, value in {"loss": float(out.loss.detach()), **out.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
        if total <= 0:
            raise ValueError("a step needs batches with a positive weight")
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        torch._foreach_div_(gradients, total)
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._settings.clip_norm is not None:
            scale = float((self._settings.clip_norm / (norm + 1e-6)).clamp(max=1.0))
            if scale < 1.0:
                torch._foreach_mul_(gradients, scale)
        rate = self.rate()
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        if self.trace.on:
            self.trace.note(Layer.UPDATE, list(sums.values()), total, norm)
            self.trace.note(Layer.WEIGHTS, self._probe())
        return {name: value / total for name, value in sums.items()} | {"grad_norm": float(norm), "lr": rate}

    def _probe(self) -> Tensor:
        """Evenly spaced entries of every trained weight."""
        flat = [parameter.detach().reshape(-1) for parameter in self._parameters]
        return torch.cat([weights[:: max(1, len(weights) // _PROBED)] for weights in flat])

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs: weights, moments, counters. Plain tensors and numbers, names as keys."""
        moments = {}
        for name, parameter in self._named.items():
            entry = self._optimiser.state.get(parameter)
            if entry:
                moments[name] = {key: value.detach().clone() for key, value in entry.items()}
        return {
            "steps": self.steps,
            "weights": {name: parameter.detach().clone() for name, parameter in self._named.items()},
            "moments": moments,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`. Raises ResumeError where it is not a state of this very learner."""
        if set(state) != {"steps", "weights", "moments"}:
            raise ResumeError(f"a learner's state has steps, weights and moments, not {sorted(state)}")
        if set(state["weights"]) != set(self._named):
            odd = sorted(set(state["weights"]) ^ set(self._named))
            raise ResumeError(f"the checkpoint and the model disagree about trainable weights: {', '.join(odd[:5])}")
        if set(state["moments"]) - set(self._named):
            raise ResumeError("the checkpoint has optimiser moments of weights that the model does not train")
        if state["steps"] and (missing := sorted(set(self._named) - set(state["moments"]))):
            raise ResumeError(f"the optimiser's moments of {', '.join(missing[:5])} are missing from the checkpoint")
        with torch.no_grad():
            for name, parameter in self._named.items():
                if parameter.shape != state["weights"][name].shape:
                    raise ResumeError(f"the checkpoint's {name} has another shape than the model's")
                parameter.copy_(state["weights"][name])
        self._optimiser.state.clear()
        for name, entry in state["moments"].items():
            parameter = self._named[name]
            self._optimiser.state[parameter] = {key: value.to(self._device).clone() for key, value in entry.items()}
        self.steps = int(state["steps"])
