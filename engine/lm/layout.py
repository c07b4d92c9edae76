"""How a module's weights lie over the ranks that train it: whole, as replicas (DDP), or in shards (FSDP2).

A layout runs a loss within whatever hooks its wrapper needs, and takes the optimiser's steps. Weights and moments
leave it whole and under the module's own names, so that a checkpoint knows nothing of ranks: it resumes under another
number of them, or another layout. DeepSpeed's are in `layout_deepspeed`; schedule and metrics are the learner's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from engine.lm import lean

Moments = Mapping[str, Mapping[str, Tensor]]

_GROWS_AFTER = 2000
"""Steps without an overflow after which the loss scale of float16 is doubled."""


@dataclass(frozen=True)
class Adam:
    """The optimiser's settings that do not change with time."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float | None


class Layout(Protocol):
    """See the module. Every call but `named` is made by all ranks alike."""

    @property
    def named(self) -> Mapping[str, nn.Parameter]:
        """What is trained."""

    def autocast(self) -> AbstractContextManager[Any]:
        """In which a loss is computed in the run's precision."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(*args)`, which uses the module, within the wrapper's hooks."""

    def backward(self, loss: Tensor, *, total: float | None, last: bool) -> None:
        """Add the gradients of a summed loss; `last` before the step. `total` is the weight of all ranks' losses."""

    def step(self, rate: float, total: float) -> float:
        """One step on the sum of gradients divided by `total`; returns their norm before clipping."""

    def weights(self) -> dict[str, Tensor]:
        """What is trained, whole."""

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's moments, whole; empty before the first step."""

    def load(self, weights: Mapping[str, Tensor], moments: Moments) -> None: ...

    def shown(self) -> list[Tensor]:
        """What this rank holds of each trained weight."""

    def everything(self, model: nn.Module) -> dict[str, Tensor] | None:
        """The state dict of the module or a part of it, whole; None where it lies whole already."""

    scaling: list[float] | None
    """The loss scale of float16 and how many steps it has held; None in other formats."""


class Within(nn.Module):
    """A module whose forward is any function of it: what wraps a module hooks its forward, and ours have many."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


@dataclass(frozen=True)
class Wrapping:
    """What differs between the layouts that torch's own optimiser steps."""

    call: Callable[..., Any] = lambda function, *args: function(*args)
    ranks: int = 1
    """By which the wrapper divides gradients."""
    quietly: Callable[[], AbstractContextManager[Any]] = nullcontext
    """A backward pass that exchanges no gradients, for another one follows."""
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor
    part: Callable[[Tensor, Tensor], Tensor] = lambda tensor, like: tensor
    """What this rank holds of a whole tensor, lying as `like` does."""
    shards: bool = False


class TorchLayout:
    """Whole weights, replicas and FSDP2's shards; see `Layout`."""

    def __init__(self, module: nn.Module, adam: Adam, precision: torch.dtype, wrapping: Wrapping) -> None:
        self.named: Mapping[str, nn.Parameter] = trainable(module)
        self._parameters = list(self.named.values())
        self._wrapping, self._precision, self._clip_norm = wrapping, precision, adam.clip_norm
        self._device = self._parameters[0].device
        self.scaling: list[float] | None = [2.0**16, 0.0] if precision == torch.float16 else None
        self.optimiser = torch.optim.AdamW(
            self._parameters, lr=0.0, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay, fused=True
        )

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._wrapping.call(function, *args)

    def backward(self, loss: Tensor, *, total: float | None, last: bool) -> None:
        # Not divided by the total yet: what is known only after the last part must give the same bits.
        factor = self._wrapping.ranks * (1.0 if self.scaling is None else self.scaling[0])
        with nullcontext() if last else self._wrapping.quietly():
            torch.autograd.backward(loss if factor == 1.0 else loss * factor)

    def step(self, rate: float, total: float) -> float:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        torch._foreach_div_(gradients, total if self.scaling is None else total * self.scaling[0])
        norm = self._wrapping.whole(torch.nn.utils.get_total_norm(gradients))
        if not self._overflows(norm):
            if self._clip_norm is not None:
                scale = float((self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
                if scale < 1.0:
                    torch._foreach_mul_(gradients, scale)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return float(norm)

    def _overflows(self, norm: Tensor) -> bool:
        """In float16, whether the step is to be left out; the loss scale follows (Micikevicius et al., 2018)."""
        if self.scaling is None:
            return False
        if not torch.isfinite(norm):
            self.scaling = [self.scaling[0] / 2, 0.0]
            return True
        scale, held = self.scaling
        self.scaling = [scale * 2, 0.0] if held + 1 >= _GROWS_AFTER else [scale, held + 1]
        return False

    def weights(self) -> dict[str, Tensor]:
        return {name: self._copy(parameter) for name, parameter in self.named.items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        found = {}
        for name, parameter in self.named.items():
            if entry := self.optimiser.state.get(parameter):
                found[name] = {key: self._copy(value) for key, value in entry.items()}
        return found

    def load(self, weights: Mapping[str, Tensor], moments: Moments) -> None:
        part = self._wrapping.part
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(part(weights[name], parameter))
        self.optimiser.state.clear()
        for name, entry in moments.items():
            parameter = self.named[name]
            # Moments lie as their weight does; the count of steps is one number.
            self.optimiser.state[parameter] = {
                key: part(value.to(self._device), parameter).clone()
                if value.shape == parameter.shape
                else value.clone()
                for key, value in entry.items()
            }

    def _copy(self, tensor: Tensor) -> Tensor:
        return self._wrapping.whole(tensor.detach()).clone()

    def shown(self) -> list[Tensor]:
        return [getattr(parameter, "_local_tensor", parameter).detach() for parameter in self._parameters]

    def everything(self, model: nn.Module) -> dict[str, Tensor] | None:
        return gathered(model, self._wrapping.whole) if self._wrapping.shards else None


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """What an optimiser may change, by the module's own names."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def gathered(model: nn.Module, whole: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """A state dict of whole tensors on the CPU; tied weights stay one tensor."""
    seen: dict[int, Tensor] = {}
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen[id(tensor)] = whole(tensor.detach()).to("cpu", copy=True)
        found[name] = seen[id(tensor)]
    return found


def alone() -> Wrapping:
    """One rank."""
    return Wrapping()


def replicas(module: nn.Module, ranks: int) -> Wrapping:
    """DDP: every rank holds all, and gradients are averaged while the backward pass still computes others."""
    from torch.nn.parallel import DistributedDataParallel

    wrapped = DistributedDataParallel(Within(module), broadcast_buffers=False, gradient_as_bucket_view=True)
    return Wrapping(call=wrapped, ranks=ranks, quietly=wrapped.no_sync)


def shards(module: nn.Module, ranks: int, precision: torch.dtype) -> Wrapping:
    """FSDP2: every rank holds a part of each layer's weights, gradients and moments (Zhao et al., 2023)."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor import DTensor, distribute_tensor

    lowered = None if precision == torch.float32 else precision
    policy = MixedPrecisionPolicy(param_dtype=lowered, reduce_dtype=torch.float32)
    within = Within(module)
    for layer in layers_of(module):
        fully_shard(layer, mp_policy=policy)
    fully_shard(within, mp_policy=policy)

    def whole(tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(tensor: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    return Wrapping(call=within, ranks=ranks, whole=whole, part=part, shards=True)


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of the language model within: what is gathered, and computed a second time, at once."""
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def through_layers(module: nn.Module, *, checkpoint: bool) -> None:
    """Have the module's passes go through its layers' own calls; with `checkpoint` the backward pass computes each
    layer a second time rather than keep what it saw (Chen et al., 2016)."""
    for part in module.modules():
        if not isinstance(part, PreTrainedModel):
            continue
        if lean.supports(part):
            lean.adopt(part)
        if checkpoint:
            part.gradient_checkpointing_enable({"use_reentrant": False})
