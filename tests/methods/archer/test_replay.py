"""The replay ring: what it keeps, what it draws, and that it survives a checkpoint."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.methods.archer.replay import ReplayBuffer, Transition, ids
from engine.runtime.tree import flatten, unflatten


def transition(number: int, *, rivals: int = 2, done: bool = False) -> Transition:
    return Transition(
        state=ids([1, 2, number]),
        action=ids(range(number % 3 + 1)),
        reward=number / 10,
        done=done,
        reply=ids([] if done else [7] * (number % 2)),
        candidates=() if done else tuple(ids([number, k]) for k in range(rivals)),
    )


def plain(row: Transition) -> tuple[object, ...]:
    return (
        row.state.tolist(),
        row.action.tolist(),
        row.reward,
        row.done,
        row.reply.tolist(),
        [candidate.tolist() for candidate in row.candidates],
    )


def test_the_oldest_leave_first() -> None:
    buffer = ReplayBuffer(3)
    for number in range(5):
        buffer.add(transition(number))

    kept = {row.state[-1] for row in buffer.sample(200, np.random.default_rng(0))}
    assert kept == {2, 3, 4}
    assert (len(buffer), buffer.added) == (3, 5)


def test_the_next_state_is_state_action_and_reply() -> None:
    assert transition(4).next_state.tolist() == [1, 2, 4, 0, 1]
    assert transition(5).next_state.tolist() == [1, 2, 5, 0, 1, 2, 7]


@given(st.integers(0, 12), st.integers(1, 5))
def test_a_checkpoint_brings_back_the_same_draws(count: int, capacity: int) -> None:
    buffer = ReplayBuffer(capacity)
    for number in range(count):
        buffer.add(transition(number, done=number % 3 == 0))

    restored = ReplayBuffer.of(unflatten(*flatten(buffer.state())))

    for twin in (buffer, restored):
        twin.add(transition(99))
    draws = [[plain(row) for row in twin.sample(20, np.random.default_rng(1))] for twin in (buffer, restored)]
    assert draws[0] == draws[1]
    assert restored.added == buffer.added
