"""Decoding for Llama-like models: fused weight copies, a preallocated cache, a dozen operations a layer and token.

Queries and keys are kept with the halves of each rotary pair side by side, so that a rotation is one
complex product; the permutation is the same for both and leaves their products alone. Norm weights are
folded into the layer that follows. Equal to the model's own forward to rounding; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from engine.lm import lean
from engine.lm.logprobs import output_layer


@dataclass(frozen=True)
class _Layer:
    """One layer's weights, fused: q, k and v in one product, gate and up in another. All [out, in]."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    gate_up: Tensor
    down: Tensor


class LeanDecoder:
    """A `Decoder` (see `decoders`) for models that `lean.supports`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._versions: tuple[int, ...] = ()
        self._layers: list[_Layer] = []
        self._kv: list[Tensor] = []
        self._turns: Tensor | None = None
        self._memory = _Memory()

    def refresh(self) -> None:
        self._versions = ()
        self._memory = _Memory()

    def start(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], room: int) -> Tensor:
        self._copy_weights()
        longest = max(map(len, prompts))
        device = self._embed.device
        known = [self._memory.longest_prefix(prompt) for prompt in prompts]
        fresh = max(
            len(prompt) - min(kept.length, len(prompt) - 1) for prompt, kept in zip(prompts, known, strict=True)
        )
        caches = [
            torch.zeros(len(prompts), longest, 2 * self._kv_heads, self._dim, dtype=self._dtype, device=device)
            for _ in self._layers
        ]
        ids = torch.zeros(len(prompts), fresh, dtype=torch.long)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        for i, (prompt, kept) in enumerate(zip(prompts, known, strict=True)):
            new = min(fresh, len(prompt))
            ids[i, fresh - new :] = torch.tensor(prompt[len(prompt) - new :])
            reused = len(prompt) - new
            if reused:
                for cache, layer in zip(caches, kept.layers, strict=True):
                    cache[i, longest - len(prompt) : longest - new] = layer[:reused]
        last = self._prefill(ids.to(device), caches, lengths.to(device), longest)
        index = torch.tensor(rows, device=device)
        self._prompts, self._room = prompts, room
        self._prompt_kv = caches
        self._begin, self._column = longest, longest
        self._positions = lengths.to(device)[index]
        pad = longest - self._positions
        if bool(pad.any()):
            column = torch.arange(longest + room, device=device)
            mask = torch.zeros(len(rows), 1, 1, longest + room, dtype=self._dtype, device=device)
            self._mask: Tensor | None = mask.masked_fill_((column < pad.unsqueeze(-1))[:, None, None], float("-inf"))
        else:
            self._mask = None
        self._kv = [
            torch.empty(len(rows), longest + room, *cache.shape[2:], dtype=self._dtype, device=device)
            for cache in caches
        ]
        for buffer, cache in zip(self._kv, caches, strict=True):
            buffer[:, :longest] = cache[index]
        self._alive = list(range(len(rows)))
        self._parted: dict[int, list[Tensor]] = {}
        return self._logits(last)[index]

    def step(self, tokens: Tensor) -> Tensor:
        x = F.embedding(tokens, self._embed)
        rotation = self._rotations(self._positions)
        column = self._column
        rows, heads, kv_heads, dim = len(x), self._heads, self._kv_heads, self._dim
        mask = None if self._mask is None else self._mask[..., : column + 1]
        for layer, buffer in zip(self._layers, self._kv, strict=True):
            h = F.rms_norm(x, (x.shape[-1],), None, self._eps)
            qkv = F.linear(h, layer.qkv, layer.qkv_bias).view(rows, heads + 2 * kv_heads, dim)
            _turn(qkv[:, : heads + kv_heads], rotation)
            buffer[:, column] = qkv[:, heads:]
            past = buffer[:, : column + 1]
            mixed = _attend(qkv[:, :heads].unsqueeze(2), past, kv_heads, mask, self._scale)
            x = torch.addmm(x, mixed.reshape(rows, -1), layer.out.t())
            h = F.linear(F.rms_norm(x, (x.shape[-1],), None, self._eps), layer.gate_up)
            inner = h.shape[-1] // 2
            x = torch.addmm(x, F.silu(h[:, :inner]).mul_(h[:, inner:]), layer.down.t())
        self._column += 1
        self._positions = self._positions + 1
        return self._logits(x)

    def keep(self, index: Tensor) -> None:
        kept = index.tolist()
        staying = set(kept)
        for k, row in enumerate(self._alive):
            if k not in staying:
                self._parted[row] = [buffer[k, self._begin : self._column].clone() for buffer in self._kv]
        self._alive = [self._alive[k] for k in kept]
        self._kv = [buffer.index_select(0, index) for buffer in self._kv]
        self._positions = self._positions.index_select(0, index)
        if self._mask is not None:
            self._mask = self._mask.index_select(0, index)

    def finish(self, rows: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        for k, row in enumerate(self._alive):
            self._parted[row] = [buffer[k, self._begin : self._column].clone() for buffer in self._kv]
        self._memory.store(self._prompts, self._prompt_kv, rows, completions, self._parted)
        self._kv, self._prompt_kv, self._parted = [], [], {}

    def _prefill(self, ids: Tensor, caches: list[Tensor], lengths: Tensor, longest: int) -> Tensor:
        """Run the last columns of left-padded prompts over what is cached of the first; final hidden state of each."""
        count, fresh = ids.shape
        heads, kv_heads, dim = self._heads, self._kv_heads, self._dim
        columns = torch.arange(longest, device=ids.device)
        pad = (longest - lengths).unsqueeze(-1)
        positions = (columns[longest - fresh :].unsqueeze(0) - pad).clamp_(min=0)
        rotation = self._rotations(positions.reshape(-1))
        asking = columns[longest - fresh :]
        visible = (columns[None, None] <= asking[None, :, None]) & (columns[None, None] >= pad.unsqueeze(-1))
        visible |= columns[None, None] == asking[None, :, None]  # padding looks at itself, not at nothing
        mask = visible.unsqueeze(1)
        x = F.embedding(ids.reshape(-1), self._embed)
        for layer, cache in zip(self._layers, caches, strict=True):
            h = F.rms_norm(x, (x.shape[-1],), None, self._eps)
            qkv = F.linear(h, layer.qkv, layer.qkv_bias).view(count * fresh, heads + 2 * kv_heads, dim)
            _turn(qkv[:, : heads + kv_heads], rotation)
            qkv = qkv.view(count, fresh, heads + 2 * kv_heads, dim)
            cache[:, longest - fresh :] = qkv[:, :, heads:]
            mixed = _attend(qkv[:, :, :heads].transpose(1, 2), cache, kv_heads, mask, self._scale)
            x = torch.addmm(x, mixed.transpose(1, 2).reshape(count * fresh, -1), layer.out.t())
            h = F.linear(F.rms_norm(x, (x.shape[-1],), None, self._eps), layer.gate_up)
            inner = h.shape[-1] // 2
            x = torch.addmm(x, F.silu(h[:, :inner]).mul_(h[:, inner:]), layer.down.t())
        return x.view(count, fresh, -1)[:, -1]

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(F.rms_norm(x, (x.shape[-1],), None, self._eps), self._head).float()

    def _rotations(self, positions: Tensor) -> Tensor:
        """cos + i sin of each position and frequency: complex [rows, 1, dim / 2]."""
        if self._turns is None or self._turns.shape[0] <= int(positions.max()):
            count = max(256, 2 * int(positions.max()))
            angles = torch.arange(count, device=positions.device).unsqueeze(-1) * self._frequencies.double()
            self._turns = torch.polar(torch.full_like(angles, self._stretch), angles).to(torch.complex64)
        return self._turns[positions].unsqueeze(1)

    def _copy_weights(self) -> None:
        """Copy and fuse the weights if they changed since the last copy."""
        versions = tuple(parameter._version for parameter in self._model.parameters())
        if versions == self._versions:
            return
        base = lean.unwrap(self._model)
        config, decoder = base.config, base.model
        self._memory = _Memory()
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._dim, self._scale = decoder.layers[0].self_attn.head_dim, decoder.layers[0].self_attn.scaling
        self._eps = config.rms_norm_eps
        self._embed = base.get_input_embeddings().weight.detach()
        self._dtype = self._embed.dtype
        self._layers = [self._fused(layer) for layer in decoder.layers]
        head = output_layer(self._model)
        self._head = (head.weight * decoder.norm.weight).detach()
        self._frequencies = decoder.rotary_emb.inv_freq
        self._stretch = float(decoder.rotary_emb.attention_scaling)
        self._turns = None
        self._versions = versions

    def _fused(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        before, after = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        parts = [(attention.q_proj, True), (attention.k_proj, True), (attention.v_proj, False)]
        weights = [_weight(module) for module, _ in parts]
        biases = [_base(module).bias for module, _ in parts]
        paired = [_paired(w, self._dim) if turn else w for w, (_, turn) in zip(weights, parts, strict=True)]
        bias = None
        if biases[0] is not None:
            bias = torch.cat(
                [_paired(b, self._dim) if turn else b for b, (_, turn) in zip(biases, parts, strict=True)]
            ).detach()
        return _Layer(
            qkv=(torch.cat(paired) * before).detach(),
            qkv_bias=bias,
            out=_weight(attention.o_proj).detach(),
            gate_up=(torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)]) * after).detach(),
            down=_weight(mlp.down_proj).detach(),
        )


@dataclass(frozen=True)
class _Kept:
    """Cached activations of the first `length` tokens of some context: a [length, 2·Hkv, d] tensor a layer."""

    length: int
    layers: tuple[Tensor, ...]


class _Memory:
    """Activations of the last call's contexts: each prompt, and each prompt with one of its completions."""

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[int, ...], _Kept]] = []

    def store(
        self,
        prompts: Sequence[Sequence[int]],
        caches: list[Tensor],
        rows: Sequence[int],
        completions: Sequence[Sequence[int]],
        own: dict[int, list[Tensor]],
    ) -> None:
        """Replace what is remembered by the rows of one finished call."""
        longest = max(map(len, prompts))
        fronts = [[cache[i, longest - len(prompt) :] for cache in caches] for i, prompt in enumerate(prompts)]
        entries: dict[tuple[int, ...], _Kept] = {}
        for row, completion in enumerate(completions):
            prompt, front, tail = prompts[rows[row]], fronts[rows[row]], own[row]
            fed = tail[0].shape[0]
            tokens = (*prompt, *completion[:fed])
            if tokens not in entries:
                layers = tuple(torch.cat([a, b]) for a, b in zip(front, tail, strict=True))
                entries[tokens] = _Kept(len(tokens), layers)
        self._entries = list(entries.items())

    def longest_prefix(self, prompt: Sequence[int]) -> _Kept:
        """The activations that cover most of the beginning of `prompt`."""
        best = _Kept(0, ())
        for tokens, kept in self._entries:
            common = 0
            for a, b in zip(tokens, prompt, strict=False):
                if a != b:
                    break
                common += 1
            if common > best.length:
                best = _Kept(common, kept.layers)
        return best


def _attend(query: Tensor, past: Tensor, kv_heads: int, mask: Tensor | None, scale: float) -> Tensor:
    """query [R, H, q, d], past [R, L, 2·Hkv, d]; returns [R, H, q, d]."""
    key, value = past[:, :, :kv_heads].transpose(1, 2), past[:, :, kv_heads:].transpose(1, 2)
    grouped = query.shape[1] != kv_heads
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)


def _turn(x: Tensor, rotation: Tensor) -> None:
    """Rotate pairs of neighbours in place: x [rows, heads, d], rotation complex [rows, 1, d / 2]."""
    torch.view_as_complex(x.view(*x.shape[:-1], -1, 2)).mul_(rotation)


def _paired(weight: Tensor, dim: int) -> Tensor:
    """Rows of each head reordered so that i and i + d/2, which rotate together, become neighbours."""
    return weight.view(-1, 2, dim // 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _base(module: nn.Module) -> nn.Linear:
    inner = module.base_layer if isinstance(module, LoraLinear) else module
    assert isinstance(inner, nn.Linear)
    return inner


def _weight(module: nn.Module) -> Tensor:
    """A projection's weight with its LoRA update added."""
    weight = _base(module).weight
    if isinstance(module, LoraLinear) and not module.merged and not module.disable_adapters:
        for adapter in module.active_adapters:
            if adapter in module.lora_A:
                weight = weight + module.get_delta_weight(adapter)
    return weight
