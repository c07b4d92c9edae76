"""Shares of the examples: everything once over all ranks, as many passes in each, and the same numbers together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.lm.learner import Hollow
from engine.lm.shares import cut, everywhere, own_parts, shares

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


class Rank:
    """One of some ranks in threads, which exchange through a list."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._board, self._barrier = rank, size, board, barrier
        self.world, self.passes = self, 0

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait(timeout=30)
        return list(self._board)

    def agree(self, value: Any) -> Any:
        return self.gather(value)[0]

    def total(self, numbers: Sequence[float]) -> list[float]:
        return [sum(column) for column in zip(*self.gather(numbers), strict=True)]

    def apply(self, function: Callable[..., Any], *args: Any) -> Any:
        self.passes += 1
        return function(*args)


def ranks(size: int) -> list[Rank]:
    board, barrier = [None] * size, threading.Barrier(size)
    return [Rank(rank, size, board, barrier) for rank in range(size)]


@given(LENGTHS, st.integers(1, 60))
def test_parts_hold_everything_in_order_and_no_more_than_fits(lengths: list[int], most: int) -> None:
    parts = list(cut(range(len(lengths)), lengths, most))

    assert [index for part in parts for index in part] == list(range(len(lengths)))
    assert all(len(part) == 1 or sum(lengths[i] for i in part) <= most for part in parts)


@given(LENGTHS, st.integers(1, 8))
def test_shares_hold_everything_in_order_and_none_much_more_than_its_part(lengths: list[int], size: int) -> None:
    found = shares(range(len(lengths)), lengths, size)

    assert len(found) == size
    assert [index for share in found for index in share] == list(range(len(lengths)))
    # An example goes where its middle lies: a share reaches over its bounds by half an example on either side.
    fair = sum(lengths) / size
    assert all(sum(lengths[i] for i in share) <= fair + max(lengths) for share in found)


@given(LENGTHS, st.integers(1, 60), st.integers(1, 5))
def test_every_rank_makes_as_many_passes_and_what_counts_is_everything_once(
    lengths: list[int], most: int, size: int
) -> None:
    order = list(reversed(range(len(lengths))))

    parts = [own_parts(order, lengths, most, rank) for rank in ranks(size)]

    assert len({len(mine) for mine in parts}) == 1
    full = [part for mine in parts for part in mine if not isinstance(part, Hollow)]
    assert sorted(index for part in full for index in part) == list(range(len(lengths)))


def test_ranks_find_out_together_what_one_finds_out_alone() -> None:
    lengths, values = [3, 9, 2, 7, 7, 1, 30], torch.arange(7.0) ** 2
    order = [6, 0, 1, 2, 3, 4, 5]
    found: dict[int, torch.Tensor] = {}
    crew = ranks(3)

    def work(rank: Rank) -> None:
        found[rank.rank] = everywhere(lambda part: values[part], order, lengths, 10, rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert everywhere(lambda part: values[part], order, lengths, 10).tolist() == values.tolist()
    assert [found[rank].tolist() for rank in range(3)] == [values.tolist()] * 3
    assert len({rank.passes for rank in crew}) == 1
