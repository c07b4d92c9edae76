"""Layers compiled by torch.compile, for training alone: their calls without gradients stay as they are.

Only layers are compiled: what they have in common is compiled once for all of them, and batches of every size and shape
go through the same code. Modules and the names of their weights stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import SpecError
from engine.lm import lean
from engine.lm.layout import layers_of

BACKEND = "inductor"


def compile_layers(module: nn.Module) -> None:
    """Have training passes go through compiled layers. Raises SpecError where there are none, or no compiler."""
    layers = layers_of(module)
    if not layers:
        raise SpecError(
            f"hardware.compile: where the layers of a {type(module).__name__} are is not known: leave it out"
        )
    if next(module.parameters()).device.type == "cpu":
        _find_compiler()
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and lean.supports(part):
            lean.adopt(part, in_training=_through(BACKEND))
    for layer in layers:
        if not isinstance(layer.forward, lean.Either | _InTraining):
            layer.forward = _InTraining(layer)


@cache
def _through(backend: str) -> Callable[..., Any]:
    """One for all layers: torch keeps what it has compiled by the function.

    Attention is left out. How many blocks it has differs from tree to tree, and it would be compiled anew for each.
    """
    look: Callable[..., Tensor] = torch.compiler.disable(lean.attend)  # type: ignore[no-untyped-call]
    compiled = _compiled(lean.through, backend)

    def through(layer: nn.Module, x: Tensor, sight: lean.Sight) -> Tensor:
        real = replace(sight, rotation=torch.view_as_real(sight.rotation))  # no code is made of complex numbers
        out: Tensor = compiled(layer, x, real, look)
        return out

    return through


class _InTraining:
    """A layer's own forward, compiled where gradients are wanted: caches of a sampler would be compiled one by one."""

    def __init__(self, layer: nn.Module) -> None:
        # The class's function, which is handed its layer: a bound one would stay this layer's in a copy of the model.
        self._layer, self._own = layer, layer.forward
        self._compiled = _compiled(type(layer).forward, BACKEND)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(self._layer, *args, **kwargs) if torch.is_grad_enabled() else self._own(*args, **kwargs)


@cache
def _compiled(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
    made: Callable[..., Any] = torch.compile(function, dynamic=True, backend=backend)
    return made


def _find_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise SpecError(
            "hardware.compile: on a CPU torch.compile needs a C++ compiler where the worker runs, and finds none: "
            "install g++, or leave it out"
        ) from error
