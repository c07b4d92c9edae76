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
    rows, home = _sequences(packed)
    device = packed.ids.device
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    base = lean.unwrap(model)
    out = base.base_model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    hidden: Tensor = out.last_hidden_state[home[:, 0], home[:, 1]]
    return hidden


def _sequences(packed: Pack) -> tuple[list[list[int]], Tensor]:
    """The tree's sequences from root to leaf, and the row and position in them of each of `packed.nodes`."""
    ids, parents, depth = packed.ids.tolist(), packed.parents.tolist(), packed.depth.tolist()
    inner = set(parents)
    row_of: dict[int, int] = {}
    rows: list[list[int]] = []
    for leaf in (node for node in range(len(ids)) if node not in inner):
        node, row = leaf, [0] * (depth[leaf] + 1)
        while node >= 0:
            row[depth[node]] = ids[node]
            row_of.setdefault(node, len(rows))
            node = parents[node]
        rows.append(row)
    return rows, torch.tensor([[row_of[node], depth[node]] for node in packed.nodes.tolist()])
