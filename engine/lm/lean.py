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

from engine.lm.packing import Attention, Pack

FAMILIES = (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralForCausalLM,
    MistralForSequenceClassification,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)
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
        and (layer_types or getattr(config, "sliding_window", None) is None)
        and all(type(module) in (nn.Linear, LoraLinear) for module in projections(base))
    )


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
    cos, sin = decoder.rotary_emb(x.unsqueeze(0), pack.depth.unsqueeze(0))
    cos, sin = cos[0].unsqueeze(1), sin[0].unsqueeze(1)
    final = len(decoder.layers) - 1
    for i, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        h = norm(layer.input_layernorm, x)
        key = _rotate(attention.k_proj(h).view(len(h), kv_heads, -1), cos, sin)
        value = attention.v_proj(h).view(len(h), kv_heads, -1)
        who = pack.full
        if i == final:  # nothing above reads the other tokens
            x, h, cos, sin = (t.index_select(0, pack.nodes) for t in (x, h, cos, sin))
            who = pack.final
        query = _rotate(attention.q_proj(h).view(len(h), heads, -1), cos, sin)
        x = x + attention.o_proj(attend(query, key, value, who, attention.scaling))
        x = x + layer.mlp(norm(layer.post_attention_layernorm, x))
    return norm(decoder.norm, x)


def norm(module: Any, x: Tensor) -> Tensor:
    """The module's RMS norm; in float32 as one fused operation."""
    if x.dtype == torch.float32 and module.weight.dtype == torch.float32:
        return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)
    out: Tensor = module(x)
    return out


def attend(query: Tensor, key: Tensor, value: Tensor, who: Attention, scale: float) -> Tensor:
    """Attention in blocks. query [Q, H, d], key and value [N, Hkv, d]; returns [Q, H·d]."""
    repeats = query.shape[1] // key.shape[1]
    outs = []
    for block in who.blocks:
        q = _rows(query, block.queries)
        k, v = _rows(key, block.keys), _rows(value, block.keys)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=block.mask, scale=scale)
        outs.append(out.transpose(1, 2).reshape(-1, query.shape[1] * query.shape[2]))
    joined = outs[0] if len(outs) == 1 else torch.cat(outs)
    return joined if who.place is None else joined.index_select(0, who.place)


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    """[B, heads, length, d] of the indexed tokens."""
    if index is None:
        return x.transpose(0, 1).unsqueeze(0)
    return x.index_select(0, index.reshape(-1)).view(*index.shape, *x.shape[1:]).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves rotated against each other."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
