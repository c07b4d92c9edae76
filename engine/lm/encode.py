"""Hidden states of a pack by whichever path the model has: the lean forward over the tree, or its own.

A model that `lean` does not support reads the pack's sequences one a row, right-padded, through its own
forward: the same numbers, without the sharing. Differentiable either way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.lm import lean
from engine.lm.packing import Pack, pack


def encode(model: nn.Module, packed: Pack) -> Tensor:
    """Final hidden states of a causal model at `packed.nodes`: [W, D]. Gradients flow into what is trainable."""
    packed = packed.to(next(model.parameters()).device)
    return lean.hidden(model, packed) if lean.supports(model) else _padded(model, packed)


def hidden_states(
    model: nn.Module, prefixes: Sequence[Sequence[int]], candidates: Sequence[Sequence[Sequence[int]]]
) -> list[list[Tensor]]:
    """For each state and candidate, the hidden states that predict its tokens: [len(candidate), D] each.

    The convenient form; who needs a pack more than once, or flat tensors, calls `pack` and `encode`.
    """
    packed = pack(prefixes, candidates, want=("before",))
    flat = encode(model, packed)[packed.before.to(next(model.parameters()).device)]
    parts = iter(torch.split(flat, packed.lengths.tolist()))
    return [[next(parts) for _ in options] for options in candidates]


def _padded(model: nn.Module, packed: Pack) -> Tensor:
    """One row a sequence through the model's own decoder."""
    device = packed.ids.device
    longest = max(map(len, packed.rows))
    ids = torch.zeros(len(packed.rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(packed.rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    base = lean.unwrap(model)
    out = base.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    hidden: Tensor = out.last_hidden_state[packed.home[:, 0], packed.home[:, 1]]
    return hidden
