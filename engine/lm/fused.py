"""Copies of a Llama-like model's weights, laid out for decoding.

q, k and v in one product, gate and up in another; LoRA updates added; norm weights folded into the layer
that follows; each head's rows reordered so that the two halves of a rotating pair are neighbours (the same
for queries and keys, which leaves their products alone). Valid until the weights change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from engine.lm import lean
from engine.lm.logprobs import output_layer

_PACKED_FROM = 4096
"""Output layers of at least so many rows are kept in oneDNN's blocked layout: two to three times faster for a few
rows of input than the general product, at the price of one reordering."""


@dataclass(frozen=True)
class FusedLayer:
    """One layer's weights, all [out, in]. The scale of attention scores is in the queries' part."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class FusedWeights:
    """A whole model's weights."""

    embed: Tensor
    layers: tuple[FusedLayer, ...]
    logits: Callable[[Tensor], Tensor]
    """From unit-norm hidden states to logits."""
    heads: int
    kv_heads: int
    dim: int
    floor: Tensor
    """√(D ε): what keeps the length of a zero vector from being zero."""
    rotary: Any


@torch.no_grad()
def fuse(model: nn.Module) -> FusedWeights:
    """Copy and fuse the weights of a model that `lean.supports`."""
    base = lean.unwrap(model)
    config, decoder = base.config, base.model
    attention = decoder.layers[0].self_attn
    # The decoder normalises to unit length, not to unit mean square: √D more goes into each folded weight.
    root = config.hidden_size**0.5
    head = output_layer(model)
    assert isinstance(head, nn.Linear)
    return FusedWeights(
        embed=base.get_input_embeddings().weight.detach(),
        layers=tuple(_layer(layer, attention.head_dim, root) for layer in decoder.layers),
        logits=_output(head.weight * (decoder.norm.weight * root)),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        dim=attention.head_dim,
        floor=head.weight.new_tensor((config.hidden_size * config.rms_norm_eps) ** 0.5),
        rotary=decoder.rotary_emb,
    )


def _layer(layer: Any, dim: int, root: float) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    before, after = layer.input_layernorm.weight * root, layer.post_attention_layernorm.weight * root
    scale = attention.scaling
    query, key, value = (_weight(module) for module in (attention.q_proj, attention.k_proj, attention.v_proj))
    biases = [_base(module).bias for module in (attention.q_proj, attention.k_proj, attention.v_proj)]
    bias = None
    if biases[0] is not None:
        bias = torch.cat([_paired(biases[0], dim) * scale, _paired(biases[1], dim), biases[2]])
    return FusedLayer(
        qkv=torch.cat([_paired(query, dim) * scale, _paired(key, dim), value]) * before,
        qkv_bias=bias,
        out=_weight(attention.o_proj).detach(),
        gate_up=torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)]) * after,
        down=_weight(mlp.down_proj).detach(),
    )


def _output(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The product with an output layer's weight [V, D]."""
    onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if weight.device.type != "cpu" or weight.shape[0] < _PACKED_FROM or not onednn:
        return lambda x: F.linear(x, weight)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], None)


def _paired(weight: Tensor, dim: int) -> Tensor:
    """Rows of each head reordered so that i and i + d/2, which rotate together, become neighbours."""
    return weight.view(-1, 2, dim // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _base(module: nn.Module) -> nn.Linear:
    inner = module.base_layer if isinstance(module, LoraLinear) else module
    assert isinstance(inner, nn.Linear)
    return inner


def _weight(module: nn.Module) -> Tensor:
    """A projection's weight with its LoRA update added."""
    weight: Tensor = _base(module).weight
    if isinstance(module, LoraLinear) and not module.merged and not module.disable_adapters:
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                weight = weight + module.get_delta_weight(adapter)
    return weight
