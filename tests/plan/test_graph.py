"""Every input precedes its reader, and a planner's mistakes are named."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.graph import ordered
from engine.plan.stage import Stage


def stage(name: str, **inputs: str) -> Stage:
    return Stage(name=name, kind=name, run="m:f", reads=(), inputs=inputs)


def test_a_chain_given_backwards_is_turned_round() -> None:
    plan = ordered([stage("c", x="b"), stage("b", x="a"), stage("a")])

    assert [s.name for s in plan] == ["a", "b", "c"]


@given(st.integers(1, 12), st.randoms(use_true_random=False))
def test_every_input_precedes_its_reader(count: int, rng: random.Random) -> None:
    stages = [stage(f"s{i}", **{f"x{j}": f"s{j}" for j in range(i) if rng.random() < 0.4}) for i in range(count)]
    rng.shuffle(stages)

    seen: set[str] = set()
    for one in ordered(stages):
        assert set(one.inputs.values()) <= seen
        seen.add(one.name)
    assert len(seen) == count


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage("a"), stage("a")], "share a name"),
        ([stage("a", x="b")], "no stage is called"),
        ([stage("a", x="b"), stage("b", x="a")], "wait for each other"),
    ],
)
def test_a_broken_plan_is_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ordered(stages)
