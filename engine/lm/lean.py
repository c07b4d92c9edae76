"""Llama-like models without the ceremony: the same mathematics over the same modules, on a tree of tokens.

For small models the time of a `transformers` forward is mostly not arithmetic. This module reads the
weights where they are (LoRA layers included, with gradients) and computes hidden states of a `Pack`.
It is equal to the model's own forward to rounding; a test holds the two together. What it cannot do
exactly it does not support, and `supports` says so.
"""

from __future__ import annotations

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


def hidden(model: nn.Module, pack: Pack) -> Tensor:
    """Final hidden states (after the last norm) at `pack.nodes`: [W, D], differentiable."""
    decoder = unwrap(model).model
    config = decoder.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    x = decoder.embed_tokens(pack.ids)
    rotation = rotations(decoder.rotary_emb, pack.depth)
    final = len(decoder.layers) - 1
    for i, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        h = norm(layer.input_layernorm, x)
        key = rotate(attention.k_proj(h).view(len(h), kv_heads, -1), rotation)
        value = attention.v_proj(h).view(len(h), kv_heads, -1)
        who = pack.full
        if i == final:  # nothing above reads the other tokens
            x, h, rotation = (t.index_select(0, pack.nodes) for t in (x, h, rotation))
            who = pack.final
        query = rotate(attention.q_proj(h).view(len(h), heads, -1), rotation)
        x = x + attention.o_proj(attend(query, key, value, who, attention.scaling))
        x = _feed_forward(layer, x)
    return norm(decoder.norm, x)


def rotations(rotary: Any, positions: Tensor) -> Tensor:
    """cos + i sin of each position and frequency: complex64 [N, 1, d / 2]."""
    angles = positions.unsqueeze(-1).float() * rotary.inv_freq.float()
    return torch.polar(torch.full_like(angles, float(rotary.attention_scaling)), angles).unsqueeze(1)


def norm(module: Any, x: Tensor) -> Tensor:
    """The module's RMS norm; in float32 as one fused operation."""
    if x.dtype == torch.float32 and module.weight.dtype == torch.float32:
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
