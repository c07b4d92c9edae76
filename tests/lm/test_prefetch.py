"""Batches made ahead: in order, no more than asked, failing where they were to come, and ended when nobody asks."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import DataError
from engine.lm import prefetch
from engine.lm.packing import pack
from engine.lm.prefetch import AHEAD, Ahead, made_ahead
from engine.lm.supervised import Batch, Example, batch_loss, collate, completion_loss
from engine.lm.transfer import moved, pinned

EXAMPLES = [Example([1, 2, 3], [n, 7, n, 8], [True, False, True, False]) for n in range(5, 155)]


def tensors(value: Any) -> Iterator[Tensor]:
    """All of them, however deep."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        for one in fields(value):
            yield from tensors(getattr(value, one.name))


def test_they_come_in_order_and_no_more_are_made_than_may_wait() -> None:
    asked, most_waiting = 0, 0

    def source() -> Iterator[int]:
        nonlocal most_waiting
        for number in range(200):
            most_waiting = max(most_waiting, number + 1 - asked)
            yield number

    found = []
    with closing(Ahead(source())) as made:
        while True:
            asked += 1
            try:
                found.append(next(made))
            except StopIteration:
                break
    assert found == list(range(200))
    assert most_waiting <= AHEAD


def test_it_is_made_in_another_thread_while_nobody_asks() -> None:
    made_two = threading.Event()
    makers = []

    def source() -> Iterator[int]:
        for number in range(3):
            makers.append(threading.current_thread().name)
            if number == 1:
                made_two.set()
            yield number

    with closing(Ahead(source())) as made:
        assert made_two.wait(60), "the second is begun though nobody asked for the first"
        assert list(made) == [0, 1, 2]
    assert set(makers) == {"prefetch"}


def test_a_failure_is_raised_where_its_item_would_have_come_with_its_traceback() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("the third is bad")

    with closing(Ahead(source())) as made:
        assert [next(made), next(made)] == [1, 2]
        for _ in range(2):  # and again, whoever asks again
            with pytest.raises(DataError, match="the third is bad") as caught:
                next(made)
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "source", "where it failed is the innermost frame"


def test_a_thread_that_cannot_begin_says_so() -> None:
    def begin() -> None:
        raise RuntimeError("no such GPU")

    with closing(Ahead([1], begin=begin)) as made, pytest.raises(RuntimeError, match="no such GPU"):
        next(made)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread_wherever_it_is(taken: int) -> None:
    made = Ahead(iter(range(5)))
    for _ in range(taken):
        next(made)
    made.close()
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(StopIteration):
        next(made)


def test_an_error_of_the_step_ends_the_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu_of_nobodys(monkeypatch)
    with pytest.raises(ZeroDivisionError), made_ahead(iter(range(100)), "cuda") as made:
        print(1 / next(made))
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]


def test_on_the_cpu_a_batch_is_made_when_it_is_asked_for_and_by_whom() -> None:
    makers = []

    def source() -> Iterator[int]:
        for number in range(3):
            makers.append(threading.current_thread())
            yield number

    with made_ahead(source(), "cpu") as made:
        assert makers == []
        assert next(made) == 0
    assert makers == [threading.current_thread()]


def on_a_gpu_of_nobodys(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is asked of CUDA is written down in its place."""
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set", device)))
    monkeypatch.setattr(prefetch, "pinned", lambda item: calls.append(("pin", item)) or item)
    monkeypatch.setattr(prefetch, "moved", lambda item, device: calls.append(("move", (item, device))) or item)
    return calls


def test_on_a_gpu_they_are_pinned_by_the_thread_on_the_ranks_own_and_moved_by_who_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = on_a_gpu_of_nobodys(monkeypatch)
    with made_ahead(iter("ab"), "cuda") as made:
        assert list(made) == ["a", "b"]
    assert [call for call in calls if call[0] != "move"] == [("set", 3), ("pin", "a"), ("pin", "b")]
    assert [call for call in calls if call[0] == "move"] == [("move", ("a", "cuda")), ("move", ("b", "cuda"))]


@pytest.mark.parametrize("count", [3, len(EXAMPLES)], ids=["one dense block", "a block a state"])
def test_every_tensor_of_a_batch_is_moved(count: int) -> None:
    batch = collate(EXAMPLES[:count])
    assert (batch.packed.full.place is None) == (count == 3)

    away = moved(batch, "meta")

    assert {tensor.device.type for tensor in tensors(away)} == {"meta"}
    assert [tensor.shape for tensor in tensors(away)] == [tensor.shape for tensor in tensors(batch)]
    assert away.counts == batch.counts
    assert moved(batch, "cpu").packed.ids is batch.packed.ids


def test_a_batch_made_beforehand_has_the_loss_of_its_examples(make_policy: Any) -> None:
    policy = make_policy()
    once, again = completion_loss(policy, EXAMPLES[:4]), batch_loss(policy, collate(EXAMPLES[:4]))
    assert (once.loss.item(), once.weight) == (again.loss.item(), again.weight)
    assert again.weight == 8.0


@pytest.mark.gpu
def test_batches_arrive_on_the_gpu_as_they_were_made() -> None:
    parts = [EXAMPLES[:4], EXAMPLES, EXAMPLES[4:]]
    assert all(tensor.is_pinned() for tensor in tensors(pinned(collate(parts[0]))) if tensor.numel())
    with made_ahead(map(collate, parts), "cuda") as made:
        arrived: list[Batch] = list(made)
    for batch, part in zip(arrived, parts, strict=True):
        for there, here in zip(tensors(batch), tensors(collate(part)), strict=True):
            assert there.is_cuda
            assert torch.equal(there.cpu(), here)


@pytest.mark.gpu
def test_a_tree_without_tokens_of_one_kind_is_pinned_too() -> None:
    packed = pack([[1, 2]], [[[3]]], want=("last",))
    assert [tensor.tolist() for tensor in tensors(pinned(packed))] == [tensor.tolist() for tensor in tensors(packed)]
