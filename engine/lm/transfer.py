"""Batches, which are frozen dataclasses of tensors, from main memory to a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Batch = TypeVar("Batch")


def mapped(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with `function` of each tensor in it, however deep in dataclasses and tuples; the rest as it is."""
    return cast(Batch, _mapped(batch, function))


def moved(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on a device. From pinned memory it goes there while the host goes on."""
    return mapped(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(batch: Batch) -> Batch:
    """The batch in memory that a GPU reads by itself."""
    return mapped(batch, lambda tensor: tensor.pin_memory() if tensor.numel() else tensor)


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), function) for field in fields(value)})
    return value
