"""Llama-like models without the ceremony: the same mathematics over the same modules, on a tree of tokens.

For small models the time of a `transformers` forward is mostly not arithmetic. This module reads the
weights where they are (LoRA layers included, with gradients) and computes hidden states of a `Pack`.
It is equal to the model's own forward to rounding; a test holds the two together. What it cannot do
exactly it does not support, and `supports` says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralForCausalLM,
    MistralForSequenceClassification,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from engine.lm.ops import rms_norm, rotate
from engine.lm.packing import Attention, Pack

FAMILIES = (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralForCausalLM,
    MistralForSequenceClassification,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
_CHUNK = 512
_ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not change with the length of the sequence."""


def unwrap(model: nn.Module) -> Any:
    """The `transformers` model below a PEFT wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def supports(model: nn.Module) -> bool:
    """Whether `hidden` computes this model exactly: a known family, full attention, plain or LoRA projections."""
    base = unwrap(model)
    if type(base) not in FAMILIES:
        return False
    config = base.config
    layer_types = getattr(config, "layer_types", None) or ()
    return bool(
        config.hidden_act == "silu"
        and config.attention_dropout == 0.0
        and config.rope_parameters["rope_type"] in _ROPES
        and all(kind == "full_attention" for kind in layer_types)
        and (layer_types or _sees_all(config))
        and all(type(module) in (nn.Linear, LoraLinear) for module in projections(base))
    )


def _sees_all(config: Any) -> bool:
    """Whether no sliding window hides a token from another that the model can hold beside it."""
    window = getattr(config, "sliding_window", None)
    return window is None or window >= config.max_position_embeddings


def projections(base: Any) -> list[nn.Module]:
    """Every linear layer of the decoder."""
    found: list[nn.Module] = []
    for layer in base.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        found += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        found += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    return found


@dataclass(frozen=True)
class Sight:
    """What a layer's tokens look at, and from where."""

    heads: int
    kv_heads: int
    rotation: Tensor
    who: Attention
    nodes: Tensor | None
    """In the last layer the tokens that are wanted: nothing above reads the others."""


def hidden(model: nn.Module, pack: Pack) -> Tensor:
    """Final hidden states (after the last norm) at `pack.nodes`: [W, D], differentiable."""
    decoder = unwrap(model).model
    config = decoder.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    x = decoder.embed_tokens(pack.ids)
    rotation = rotations(decoder.rotary_emb, pack.depth)
    below = Sight(heads, kv_heads, rotation, pack.full, None)
    last = Sight(heads, kv_heads, rotation, pack.final, pack.nodes)
    final = len(decoder.layers) - 1
    for i, layer in enumerate(decoder.layers):
        sight = last if i == final else below
        x = layer(x, sight) if isinstance(layer.forward, Either) else through(layer, x, sight)
    return norm(decoder.norm, x)


def adopt(model: nn.Module, *, in_training: Callable[..., Tensor] | None = None) -> None:
    """Have `hidden` go through each layer's own call, for the sake of what hooks it: shards and checkpoints.

    `in_training` is done in place of `through` where gradients are wanted.
    """
    for layer in unwrap(model).model.layers:
        if not isinstance(layer.forward, Either):
            layer.forward = Either(layer)
        layer.forward.in_training = in_training or layer.forward.in_training


class Either:
    """A layer's forward: ours where `hidden` calls it, else its own."""

    def __init__(self, layer: Any) -> None:
        self._layer, self._own = layer, layer.forward
        self.in_training: Callable[..., Tensor] = through

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], Sight):
            return (self.in_training if torch.is_grad_enabled() else through)(self._layer, x, args[0])
        return self._own(x, *args, **kwargs)


def through(layer: Any, x: Tensor, sight: Sight, look: Callable[..., Tensor] | None = None) -> Tensor:
    """One layer; `look` in place of `attend`."""
    look = look or attend
    attention, rotation = layer.self_attn, sight.rotation
    h = norm(layer.input_layernorm, x)
    key = rotate(attention.k_proj(h).view(len(h), sight.kv_heads, -1), rotation)
    value = attention.v_proj(h).view(len(h), sight.kv_heads, -1)
    if sight.nodes is not None:
        x, h, rotation = (t.index_select(0, sight.nodes) for t in (x, h, rotation))
    query = rotate(attention.q_proj(h).view(len(h), sight.heads, -1), rotation)
    x = x + attention.o_proj(look(query, key, value, sight.who, attention.scaling))
    return _feed_forward(layer, x)


def rotations(rotary: Any, positions: Tensor) -> Tensor:
    """cos + i sin of each position and frequency: complex64 [N, 1, d / 2]."""
    angles = positions.unsqueeze(-1).float() * rotary.inv_freq.float()
    return torch.polar(torch.full_like(angles, float(rotary.attention_scaling)), angles).unsqueeze(1)


def norm(module: Any, x: Tensor) -> Tensor:
    """The module's RMS norm; in float32 as one fused operation."""
    if x.dtype == torch.float32 and module.weight.dtype == torch.float32 and not torch.compiler.is_compiling():
        return rms_norm(x, module.weight, module.variance_epsilon)
    out: Tensor = module(x)
    return out


def _feed_forward(layer: Any, x: Tensor) -> Tensor:
    """x + MLP(norm(x)); without gradients in place, and in chunks that stay in the processor's cache."""
    mlp = layer.mlp
    if torch.is_grad_enabled():
        out: Tensor = x + mlp(norm(layer.post_attention_layernorm, x))
        return out
    for part in torch.split(x, _CHUNK):
        h = norm(layer.post_attention_layernorm, part)
        part += mlp.down_proj(F.silu(mlp.gate_proj(h), inplace=True).mul_(mlp.up_proj(h)))
    return x


def attend(query: Tensor, key: Tensor, value: Tensor, who: Attention, scale: float) -> Tensor:
    """Attention in blocks. query [Q, H, d], key and value [N, Hkv, d]; returns [Q, H·d]."""
    repeats = query.shape[1] // key.shape[1]
    outs = []
    for block in who.blocks:
        q = _rows(query, block.queries)
        k, v = _rows(key, block.keys), _rows(value, block.keys)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=block.mask.to(q.dtype), scale=scale)
        outs.append(out.transpose(1, 2).reshape(-1, query.shape[1] * query.shape[2]))
    joined = outs[0] if len(outs) == 1 else torch.cat(outs)
    return joined if who.place is None else joined.index_select(0, who.place)


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    """[B, heads, length, d] of the indexed tokens."""
    if index is None:
        return x.transpose(0, 1).unsqueeze(0)
    return x.index_select(0, index.reshape(-1)).view(*index.shape, *x.shape[1:]).transpose(1, 2)
