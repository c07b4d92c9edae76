"""A state tree as two files' worth of data: JSON for its shape and scalars, named tensors for the rest.

Dicts (with keys of any scalar type: optimisers number their parameters), lists, tuples, tensors, numpy
arrays, bytes and JSON scalars come back as they went in. Nothing is ever pickled, so nothing else is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import ResumeError

_TAGS = {"$dict", "$tuple", "$tensor", "$array", "$scalar", "$bytes", "$float"}


def flatten(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """`(skeleton, tensors)`: JSON data that refers to tensors by name. Raises TypeError naming what cannot be kept."""
    tensors = _Names()
    return _encode(tree, "state", tensors), tensors.by_name


def unflatten(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `flatten`. Raises ResumeError for a tensor that is missing or a tag that is unknown."""
    if isinstance(skeleton, list):
        return [unflatten(item, tensors) for item in skeleton]
    if not isinstance(skeleton, dict):
        return skeleton
    tag = next(iter(skeleton), "")
    if len(skeleton) != 1 or not tag.startswith("$"):
        return {key: unflatten(item, tensors) for key, item in skeleton.items()}
    value = skeleton[tag]
    match tag:
        case "$dict":
            return {unflatten(key, tensors): unflatten(item, tensors) for key, item in value}
        case "$tuple":
            return tuple(unflatten(item, tensors) for item in value)
        case "$float":
            return float(value)
    if tag not in _TAGS:
        raise ResumeError(f"the checkpoint holds {tag!r}, which this version of rlx cannot read")
    if value not in tensors:
        raise ResumeError(f"the checkpoint lacks the tensor {value!r}")
    tensor = tensors[value]
    match tag:
        case "$tensor":
            return tensor
        case "$array":
            return tensor.numpy()
        case "$scalar":
            return tensor.numpy()[()]
        case _:
            return tensor.numpy().tobytes()


def _encode(value: Any, path: str, tensors: _Names) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if type(value) is int:
        return value
    if isinstance(value, Tensor):
        return {"$tensor": tensors.add(path, value)}
    if isinstance(value, np.ndarray):
        return {"$array": tensors.add(path, _as_tensor(value, path))}
    if isinstance(value, np.generic):
        return {"$scalar": tensors.add(path, _as_tensor(np.asarray(value), path))}
    if isinstance(value, bytes):
        return {"$bytes": tensors.add(path, torch.tensor(list(value), dtype=torch.uint8))}
    if isinstance(value, Mapping):
        if all(type(key) is str for key in value) and not any(key.startswith("$") for key in value):
            return {key: _encode(item, f"{path}.{key}", tensors) for key, item in value.items()}
        pairs = [
            [_encode(key, f"{path} key", tensors), _encode(item, f"{path}.{key}", tensors)]
            for key, item in value.items()
        ]
        return {"$dict": pairs}
    if isinstance(value, tuple):
        return {"$tuple": [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, f"{path}.{index}", tensors) for index, item in enumerate(value)]
    raise TypeError(
        f"{path} is a {type(value).__name__}: a checkpoint holds dicts, lists, tensors, numpy arrays and JSON scalars"
    )


def _as_tensor(array: np.ndarray[Any, Any], path: str) -> Tensor:
    if array.dtype.kind not in "biuf" or not array.dtype.isnative:
        raise TypeError(f"{path} is a numpy array of {array.dtype}: a checkpoint holds numbers and booleans")
    return torch.from_numpy(np.array(array, order="C", copy=True))


class _Names:
    """Tensors under unique names; one that appears twice (tied weights) is kept once."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._seen: dict[tuple[Any, ...], str] = {}
        self._sources: list[Tensor] = []

    def add(self, path: str, tensor: Tensor) -> str:
        source = tensor.detach()
        if source.layout is not torch.strided:
            raise TypeError(f"{path} is a tensor of layout {source.layout}: a checkpoint holds dense ones")
        key = (source.data_ptr(), source.device, source.dtype, tuple(source.shape), source.stride())
        if source.numel() and key in self._seen:
            return self._seen[key]
        name, count = path, 1
        while name in self.by_name:
            count += 1
            name = f"{path}#{count}"
        # A copy of its own: views of one storage are refused by safetensors, and training may go on meanwhile.
        self.by_name[name] = source.to("cpu", copy=True).contiguous()
        self._seen[key] = name
        self._sources.append(source)  # keeps the address from being used again while we name others
        return name
