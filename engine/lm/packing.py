"""Many candidates of many states as one tree of tokens, in which every shared beginning stands once.

Two candidates share their state, two states share their prompt, and s′ shares with s all but the chosen
candidate: a tree holds each token once a distinct past. This module only counts: which tokens there are,
who may look at whom, where the activations one wants come out. The forward pass is `encode.py`'s.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from engine.lm.transfer import moved

Wanted = Literal["before", "last", "state"]
_DENSE = 320
"""Trees up to this many tokens attend in one dense block: gathering would cost more than it saves."""


@dataclass(frozen=True)
class Block:
    """Queries that attend together: [B, q] indices into the queries, [B, k] into the tree, a [B, 1, q, k] mask."""

    queries: Tensor | None
    """None: all queries, in order."""
    keys: Tensor | None
    """None: the whole tree, in order."""
    mask: Tensor
    """0 where a query may look at a key, −∞ elsewhere: what attention adds to its scores."""


@dataclass(frozen=True)
class Attention:
    """Who looks at whom, in blocks whose outputs, laid end to end, are put in order by `place`."""

    blocks: tuple[Block, ...]
    place: Tensor | None


@dataclass(frozen=True)
class Pack:
    """A tree of tokens and the places in it that were asked for. Independent of any model."""

    ids: Tensor
    """[N] token ids, parents before children."""
    depth: Tensor
    """[N] positions in their own sequences."""
    nodes: Tensor
    """[W] the tokens whose hidden states `encode` returns, in that order; the tensors below index into these."""
    before: Tensor
    """[T] where each candidate token is predicted: at the token before it. Candidates one after the other."""
    targets: Tensor
    """[T] the candidate tokens themselves."""
    owner: Tensor
    """[T] which candidate each token belongs to, counted through all states."""
    last: Tensor
    """[K] the last token of each candidate."""
    state: Tensor
    """[S] the last token of each state."""
    lengths: Tensor
    """[K] tokens of each candidate."""
    full: Attention
    """Attention of every token."""
    final: Attention
    """Attention of `nodes` alone, all that the last layer needs."""
    parents: Tensor = field(repr=False)
    """[N] the token before each one in its sequence, -1 for a first."""

    def to(self, device: torch.device | str) -> Pack:
        """The same pack with its tensors on a device."""
        if self.ids.device == torch.device(device):
            return self
        return moved(self, device)


class _Tree:
    """A trie of token sequences under construction."""

    def __init__(self) -> None:
        self.children: dict[tuple[int, int], int] = {}
        self.ids = array("q")
        self.parents = array("q")
        self.depths = array("q")
        self.makers = array("q")

    def walk(self, node: int, tokens: Sequence[int], maker: int) -> list[int]:
        """The nodes of `tokens` below `node` (-1 is the root), made where they are missing."""
        path: list[int] = []
        for token in tokens:
            child = self.children.get((node, token))
            if child is None:
                return path + self._grow(node, tokens[len(path) :], maker)
            path.append(child)
            node = child
        return path

    def _grow(self, node: int, tokens: Sequence[int], maker: int) -> list[int]:
        """A new branch, all at once."""
        first, count = len(self.ids), len(tokens)
        depth = self.depths[node] + 1 if node >= 0 else 0
        branch = list(range(first, first + count))
        parents = [node, *branch[:-1]]
        self.children.update(zip(zip(parents, tokens, strict=True), branch, strict=True))
        self.ids.extend(tokens)
        self.parents.extend(parents)
        self.depths.extend(range(depth, depth + count))
        self.makers.extend(repeat(maker, count))
        return branch

    def intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Preorder number of each node and of the last node below it: an ancestor's interval holds its descendants'."""
        count, parents = len(self.ids), self.parents.tolist()
        size = [1] * count
        for node in range(count - 1, -1, -1):
            if parents[node] >= 0:
                size[parents[node]] += size[node]
        begin, free, top = [0] * count, [0] * count, 0
        for node, parent in enumerate(parents):
            if parent < 0:
                begin[node], top = top, top + size[node]
            else:
                begin[node] = free[parent]
                free[parent] += size[node]
            free[node] = begin[node] + 1
        start = np.array(begin, dtype=np.int64)
        return start, start + np.array(size, dtype=np.int64) - 1


def pack(
    prefixes: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[Sequence[int]]],
    *,
    want: Sequence[Wanted] = ("before", "last"),
) -> Pack:
    """The tree of every state's candidates, and where to read what is wanted.

    `candidates[i]` are the candidates of state `prefixes[i]`, each of at least one token; their number may
    differ. `want` names what will be read (`before`, `last`, `state`); the tensors of the others are empty,
    and tokens that only they need are not computed.
    """
    if len(prefixes) != len(candidates):
        raise ValueError(f"{len(prefixes)} states but {len(candidates)} lists of candidates")
    tree = _Tree()
    paths: list[list[int]] = []
    below: list[list[list[int]]] = []
    for i, (prefix, options) in enumerate(zip(prefixes, candidates, strict=True)):
        if not prefix or not all(options):
            raise ValueError(f"state {i}: a state and each of its candidates need at least one token")
        shared = common(prefixes[i - 1], prefix) if i else 0
        path = paths[i - 1][:shared] if shared else []
        path = path + tree.walk(path[-1] if path else -1, prefix[shared:], i)
        keep = None if "last" in want else -1
        paths.append(path)
        below.append([tree.walk(path[-1], option[:keep], i) for option in options])
    before, last, state = _places(paths, below, candidates, want)
    nodes, inverse = np.unique(np.concatenate([before, last, state]), return_inverse=True)
    split = np.split(inverse, [len(before), len(before) + len(last)])
    lengths = [len(option) for options in candidates for option in options]
    begin, end = tree.intervals()
    layout = _Layout(paths, below, np.frombuffer(tree.makers, dtype=np.int64), begin, end)
    return Pack(
        ids=_tensor(tree.ids),
        depth=_tensor(tree.depths),
        nodes=torch.from_numpy(nodes),
        before=torch.from_numpy(split[0]),
        targets=torch.tensor(
            [token for options in candidates for option in options for token in option] if "before" in want else [],
            dtype=torch.long,
        ),
        owner=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        last=torch.from_numpy(split[1]),
        state=torch.from_numpy(split[2]),
        lengths=torch.tensor(lengths),
        full=layout.attention(np.arange(len(tree.ids))),
        final=layout.attention(nodes),
        parents=_tensor(tree.parents),
    )


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common, by bisection on slices, which compare at C's speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _places(
    paths: list[list[int]],
    below: list[list[list[int]]],
    candidates: Sequence[Sequence[Sequence[int]]],
    want: Sequence[Wanted],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nodes of everything wanted: before each token, at each candidate's end, at each state's end."""
    before: list[int] = []
    last: list[int] = []
    for path, options, tokens in zip(paths, below, candidates, strict=True):
        for option, text in zip(options, tokens, strict=True):
            if "before" in want:
                before.append(path[-1])
                before.extend(option[: len(text) - 1])
            if "last" in want:
                last.append(option[-1])
    state = [path[-1] for path in paths] if "state" in want else []
    return tuple(np.array(nodes, dtype=np.int64) for nodes in (before, last, state))  # type: ignore[return-value]


class _Layout:
    """Plans attention over a finished tree."""

    def __init__(
        self,
        paths: list[list[int]],
        below: list[list[list[int]]],
        makers: np.ndarray,
        begin: np.ndarray,
        end: np.ndarray,
    ) -> None:
        self._makers, self._begin, self._end = makers, begin, end
        self._keys = [
            np.array([*path, *dict.fromkeys(node for option in options for node in option)], dtype=np.int64)
            for path, options in zip(paths, below, strict=True)
        ]

    def attention(self, queries: np.ndarray) -> Attention:
        """Blocks for these nodes as queries: a dense one for a small tree, else one a state, alike sizes together."""
        if len(self._begin) <= _DENSE:
            visible = self._visible(queries, np.arange(len(self._begin)))
            return Attention((Block(None, None, _additive(visible[None, None])),), None)
        order = np.argsort(self._makers[queries], kind="stable")
        bounds = np.searchsorted(self._makers[queries][order], np.arange(len(self._keys) + 1))
        groups: dict[tuple[int, int], list[int]] = {}
        for state in range(len(self._keys)):
            count = bounds[state + 1] - bounds[state]
            if count:
                sizes = (int(count - 1).bit_length(), int(len(self._keys[state]) - 1).bit_length())
                groups.setdefault(sizes, []).append(state)
        blocks, places, offset = [], np.empty(len(queries), dtype=np.int64), 0
        for members in groups.values():
            mine = [order[bounds[s] : bounds[s + 1]] for s in members]
            width, depth = max(map(len, mine)), max(len(self._keys[s]) for s in members)
            query_index = np.zeros((len(members), width), dtype=np.int64)
            key_index = np.zeros((len(members), depth), dtype=np.int64)
            mask = np.zeros((len(members), 1, width, depth), dtype=bool)
            mask[:, :, :, 0] = True  # padding looks at something, or its softmax is nobody's business but NaN
            for row, (state, asked) in enumerate(zip(members, mine, strict=True)):
                keys = self._keys[state]
                query_index[row, : len(asked)], key_index[row, : len(keys)] = asked, keys
                mask[row, 0, : len(asked), : len(keys)] = self._visible(queries[asked], keys)
                places[asked] = offset + row * width + np.arange(len(asked))
            blocks.append(Block(torch.from_numpy(query_index), torch.from_numpy(key_index), _additive(mask)))
            offset += query_index.size
        return Attention(tuple(blocks), torch.from_numpy(places))

    def _visible(self, queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[q, k] whether the key is the query itself or an ancestor of it."""
        at = self._begin[queries][:, None]
        visible: np.ndarray = (self._begin[keys] <= at) & (at <= self._end[keys])
        return visible


def _tensor(numbers: array[int]) -> Tensor:
    return torch.frombuffer(numbers, dtype=torch.int64)


def _additive(visible: np.ndarray) -> Tensor:
    return torch.where(torch.from_numpy(visible), 0.0, float("-inf"))
