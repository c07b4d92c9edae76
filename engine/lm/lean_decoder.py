"""Decoding for Llama-like models: fused weights, a shared prompt, and as few operations a token as it takes.

A prompt's keys and values are held once for all its rows, which meet them in one product; each row's own
tokens stand beside them. Rows sit in slots, as many for each prompt as the one with most living rows
needs. Equal to the model's own forward to rounding; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.lm.fused import FusedLayer, FusedWeights, fuse
from engine.lm.lean import rotations
from engine.lm.prefixes import PrefixMemory


@dataclass
class _Batch:
    """The rows in work. Layer, key-or-value, prompt, KV head, slot, token, d are the dimensions of caches, in order."""

    shared: Tensor
    """[layers, 2, P, Hkv, longest, d]: prompts, left-padded."""
    own: Tensor
    """[layers, 2, P, Hkv, slots, room, d]: what the rows said."""
    mask: Tensor | None
    """[P, 1, longest] −∞ at padding; None where there is none."""
    owners: list[int]
    """For each row its prompt's place in `shared`."""
    names: list[int]
    """For each row its number at the start."""
    prompts: list[int]
    """For each prompt that still has rows its number at the start."""
    positions: Tensor
    """[rows] of the next token."""
    fed: int = 0
    """Tokens in `own`."""
    parted: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """Rows that left: their prompt, their name, their part of `own`."""

    def __post_init__(self) -> None:
        self.seat()

    def seat(self) -> None:
        """Give every row its slot, and lay the caches out as the steps read them."""
        prompts, slots = self.own.shape[2], self.own.shape[4]
        used = [0] * prompts
        self.slot_of = []
        """For each row its slot within its prompt's."""
        for owner in self.owners:
            self.slot_of.append(used[owner])
            used[owner] += 1
        seats = [owner * slots + slot for owner, slot in zip(self.owners, self.slot_of, strict=True)]
        self.into: Tensor | None = None
        """[P · slots] the row in each slot, any row in an empty one; None where rows are slots."""
        self.out_of: Tensor | None = None
        """[rows] the slot of each row."""
        if seats != list(range(prompts * slots)):
            row_in = dict(zip(seats, range(len(seats)), strict=True))
            self.into = torch.tensor([row_in.get(i, 0) for i in range(prompts * slots)], device=self.own.device)
            self.out_of = torch.tensor(seats, device=self.own.device)
        self.layers = [
            (k.flatten(0, 1), v.flatten(0, 1), ok.flatten(0, 2), ov.flatten(0, 2))
            for (k, v), (ok, ov) in zip(self.shared, self.own, strict=True)
        ]
        """Shared keys and values [P · Hkv, longest, d], own ones [P · Hkv · slots, room, d], as views."""

    def part(self, row: int) -> None:
        """Keep what a row that leaves has computed."""
        owner, slot = self.owners[row], self.slot_of[row]
        behind = self.own[:, :, owner, :, slot, : self.fed].clone()
        self.parted.append((self.prompts[owner], self.names[row], behind))

    def keep(self, rows: Sequence[int], index: Tensor) -> None:
        """Drop all rows but these, and every prompt that is left without."""
        staying = set(rows)
        for row in range(len(self.names)):
            if row not in staying:
                self.part(row)
        owners = [self.owners[row] for row in rows]
        living = sorted(set(owners))
        seated: list[list[int]] = [[] for _ in living]
        for row, owner in zip(rows, owners, strict=True):
            seated[living.index(owner)].append(self.slot_of[row])
        slots = max(map(len, seated))
        source = torch.tensor([[*mine, *mine[:1] * (slots - len(mine))] for mine in seated], device=index.device)
        prompts = torch.tensor(living, device=index.device)
        said = self.own[:, :, :, :, :, : self.fed].transpose(3, 4)[:, :, prompts.unsqueeze(-1), source].transpose(3, 4)
        self.own = said.new_empty(*said.shape[:5], self.own.shape[5], said.shape[6])
        self.own[:, :, :, :, :, : self.fed] = said
        if len(living) < len(self.prompts):
            self.shared = self.shared.index_select(2, prompts)
            self.mask = None if self.mask is None else self.mask.index_select(0, prompts)
        self.prompts = [self.prompts[owner] for owner in living]
        self.owners = [living.index(owner) for owner in owners]
        self.names = [self.names[row] for row in rows]
        self.positions = self.positions.index_select(0, index)
        self.seat()


class LeanDecoder:
    """A `Decoder` (see `decoders`) for float32 models that `lean.supports`."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = list(model.parameters())
        self._versions: list[int] = []
        self._memory = PrefixMemory()
        self._rotations = torch.empty(0)
        self._weights: FusedWeights
        self._batch: _Batch

    def refresh(self) -> None:
        self._versions = []
        self._memory.forget()

    def start(self, prompts: Sequence[Sequence[int]], rows: Sequence[int], room: int) -> Tensor:
        weights = self._current()
        device, longest = weights.embed.device, max(map(len, prompts))
        self._reach(longest + room)
        known = [self._memory.longest(prompt) for prompt in prompts]
        fresh = max(len(p) - min(past.length, len(p) - 1) for p, past in zip(prompts, known, strict=True))
        ids = torch.zeros(len(prompts), fresh, dtype=torch.long)
        heads = weights.kv_heads
        shared = torch.zeros(len(weights.layers), 2, len(prompts), heads, longest, weights.dim, device=device)
        for i, (prompt, past) in enumerate(zip(prompts, known, strict=True)):
            new = min(fresh, len(prompt))
            ids[i, fresh - new :] = torch.tensor(prompt[len(prompt) - new :])
            past.fill(shared[:, :, i, :, longest - len(prompt) : longest - new])
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        last = self._prefill(ids.to(device), shared, lengths)
        self._memory.remember(prompts, [shared[:, :, i, :, longest - len(p) :] for i, p in enumerate(prompts)])
        mask = None
        if int(lengths.min()) < longest:
            padding = torch.arange(longest, device=device) < (longest - lengths).unsqueeze(-1)
            mask = torch.zeros(padding.shape, device=device).masked_fill_(padding, float("-inf")).unsqueeze(1)
        slots = max(rows.count(i) for i in range(len(prompts)))
        index = torch.tensor(rows, device=device)
        self._batch = _Batch(
            shared=shared,
            own=shared.new_empty(len(weights.layers), 2, len(prompts), heads, slots, room, weights.dim),
            mask=mask,
            owners=list(rows),
            names=list(range(len(rows))),
            prompts=list(range(len(prompts))),
            positions=lengths[index],
        )
        return weights.logits(_unit(last, weights)).index_select(0, index)

    def step(self, tokens: Tensor) -> Tensor:
        weights, batch = self._weights, self._batch
        rotation = self._rotations[batch.positions].unsqueeze(1)
        x = F.embedding(tokens, weights.embed)
        turned = weights.heads + weights.kv_heads
        for number, layer in enumerate(weights.layers):
            qkv = F.linear(_unit(x, weights), layer.qkv, layer.qkv_bias).view(len(x), -1, weights.dim)
            torch.view_as_complex(qkv[:, :turned].view(len(x), turned, -1, 2)).mul_(rotation)
            x = torch.addmm(x, _attend(qkv, number, weights, batch), layer.out.t())
            x = _feed_forward(x, layer, weights)
        batch.fed += 1
        batch.positions = batch.positions + 1
        return weights.logits(_unit(x, weights))

    def keep(self, index: Tensor) -> None:
        self._batch.keep(index.tolist(), index)

    def finish(self, completions: Sequence[Sequence[int]]) -> None:
        batch = self._batch
        for row in range(len(batch.names)):
            batch.part(row)
        for prompt, name, behind in batch.parted:
            self._memory.extend(prompt, completions[name], behind)
        del self._batch

    def _current(self) -> FusedWeights:
        """The fused weights, made anew if the model's have changed since."""
        versions = [parameter._version for parameter in self._parameters]
        if versions != self._versions:
            self._weights, self._versions = fuse(self._model), versions
            self._memory.forget()
            self._rotations = torch.empty(0)
        return self._weights

    def _reach(self, length: int) -> None:
        """Have cos + i sin of at least so many positions: complex [length, d / 2]."""
        if len(self._rotations) < length:
            positions = torch.arange(max(length, 256), device=self._weights.embed.device)
            self._rotations = rotations(self._weights.rotary, positions).squeeze(1)

    def _prefill(self, ids: Tensor, shared: Tensor, lengths: Tensor) -> Tensor:
        """Run the last columns of left-padded prompts over what is cached of the first; final hidden state of each."""
        weights = self._weights
        (count, fresh), longest, heads = ids.shape, shared.shape[4], weights.heads
        columns = torch.arange(longest, device=ids.device)
        asking, pad = columns[longest - fresh :], (longest - lengths).unsqueeze(-1)
        rotation = self._rotations[(asking - pad).clamp_(min=0).flatten()].unsqueeze(1)
        visible = (columns <= asking.unsqueeze(-1)) & (columns >= pad.unsqueeze(-1))
        visible |= columns == asking.unsqueeze(-1)  # padding looks at itself, for it must look at something
        mask = visible.unsqueeze(1)
        x = F.embedding(ids.flatten(), weights.embed)
        turned = heads + weights.kv_heads
        for number, layer in enumerate(weights.layers):
            qkv = F.linear(_unit(x, weights), layer.qkv, layer.qkv_bias).view(count * fresh, -1, weights.dim)
            torch.view_as_complex(qkv[:, :turned].view(len(x), turned, -1, 2)).mul_(rotation)
            query, key, value = _parts(qkv.view(count, fresh, -1, weights.dim).transpose(1, 2), 1, weights)
            keys, values = shared[number]
            keys[:, :, longest - fresh :], values[:, :, longest - fresh :] = key, value
            mixed = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, scale=1.0, enable_gqa=heads != weights.kv_heads
            )
            x = torch.addmm(x, mixed.transpose(1, 2).reshape(count * fresh, -1), layer.out.t())
            x = _feed_forward(x, layer, weights)
        return x.view(count, fresh, -1)[:, -1]


def _attend(qkv: Tensor, number: int, weights: FusedWeights, batch: _Batch) -> Tensor:
    """Every row's new token looks at its prompt and at its own past: [rows, H · d]."""
    keys, values, own_keys, own_values = batch.layers[number]
    if batch.into is not None:
        qkv = qkv.index_select(0, batch.into)
    kv_heads, dim = weights.kv_heads, weights.dim
    prompts, slots = batch.own.shape[2], batch.own.shape[4]
    group = weights.heads // kv_heads
    longest, fed = batch.shared.shape[4], batch.fed + 1
    query, key, value = _parts(qkv.view(prompts, slots, -1, dim), 2, weights)
    own_keys.view(prompts, kv_heads, slots, -1, dim)[:, :, :, batch.fed] = key.transpose(1, 2)
    own_values.view(prompts, kv_heads, slots, -1, dim)[:, :, :, batch.fed] = value.transpose(1, 2)
    # [P · Hkv, slots · group, d] for the product with the prompt, [P · Hkv · slots, group, d] for the own past
    query = query.view(prompts, slots, kv_heads, group, dim).transpose(1, 2).reshape(-1, slots * group, dim)
    with_prompt = torch.bmm(query, keys.transpose(1, 2))
    with_own = torch.bmm(query.reshape(-1, group, dim), own_keys[:, :fed].transpose(1, 2))
    scores = torch.cat([with_prompt, with_own.view(-1, slots * group, fed)], dim=-1)
    if batch.mask is not None:
        scores.view(prompts, -1, longest + fed)[:, :, :longest] += batch.mask
    probs = torch.softmax(scores, dim=-1)
    mixed = torch.baddbmm(
        torch.bmm(probs[:, :, :longest], values).view(-1, group, dim),
        probs.view(-1, group, longest + fed)[:, :, longest:],
        own_values[:, :fed],
    )
    out = mixed.view(prompts, kv_heads, slots, group * dim).transpose(1, 2).reshape(prompts * slots, -1)
    return out if batch.out_of is None else out.index_select(0, batch.out_of)


def _parts(qkv: Tensor, heads_at: int, weights: FusedWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, whose heads stand one after the other in one dimension."""
    first, second = weights.heads, weights.heads + weights.kv_heads
    return (
        qkv.narrow(heads_at, 0, first),
        qkv.narrow(heads_at, first, weights.kv_heads),
        qkv.narrow(heads_at, second, weights.kv_heads),
    )


def _feed_forward(x: Tensor, layer: FusedLayer, weights: FusedWeights) -> Tensor:
    h = F.linear(_unit(x, weights), layer.gate_up)
    inner = h.shape[-1] // 2
    return torch.addmm(x, F.silu(h[:, :inner]).mul_(h[:, inner:]), layer.down.t())


def _unit(x: Tensor, weights: FusedWeights) -> Tensor:
    """x / √(‖x‖² + D ε): RMS normalisation without its √D, which the folded weights carry."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.hypot(length, weights.floor)
