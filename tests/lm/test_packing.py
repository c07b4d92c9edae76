"""Trees of shared prefixes: each token once, and the same numbers as reading every sequence alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from engine.lm import packing
from engine.lm.encode import encode, hidden_states
from engine.lm.packing import pack
from tests.lm.families import ADAPTABLE

TOKENS = st.integers(5, 9)  # few, so that beginnings collide
STATES = st.lists(
    st.tuples(
        st.lists(TOKENS, min_size=1, max_size=8),
        st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=5,
)
ALL = ("before", "last", "state")


def alone(model, ids):
    """Hidden states of one sequence by the model's own forward."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0]


def check(model, prefixes, candidates, atol=2e-5):
    """Every wanted place of the pack against the sequence read alone."""
    packed = pack(prefixes, candidates, want=ALL)
    found = encode(model, packed)
    before, last = iter(found[packed.before]), iter(found[packed.last])
    for prefix, options, state in zip(prefixes, candidates, found[packed.state], strict=True):
        assert_close(state, alone(model, prefix)[-1], rtol=0, atol=atol)
        for option in options:
            expected = alone(model, [*prefix, *option])
            for position in range(len(option)):
                assert_close(next(before), expected[len(prefix) - 1 + position], rtol=0, atol=atol)
            assert_close(next(last), expected[-1], rtol=0, atol=atol)


@pytest.mark.parametrize("dense", [0, 10_000])
@pytest.mark.parametrize("family", ["llama", "llama3"])
def test_any_tree_reads_as_its_sequences_alone(make_policy, monkeypatch, family, dense):
    monkeypatch.setattr(packing, "_DENSE", dense)
    model = make_policy(family).model

    @given(STATES)
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def property_holds(states):
        with torch.no_grad():
            check(model, [s for s, _ in states], [c for _, c in states])

    property_holds()


@pytest.mark.parametrize("dense", [0, 10_000])
@pytest.mark.parametrize(("family", "lora"), ADAPTABLE)
def test_every_family_reads_a_tree_as_its_sequences_alone(make_policy, monkeypatch, family, lora, dense):
    monkeypatch.setattr(packing, "_DENSE", dense)
    prefixes = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3], [1, 2, 3, 4, 9, 9, 9, 9, 9, 9, 9, 9], [8]]
    candidates = [[[4, 5, 6], [4, 5], [7]], [[4, 5, 6, 7], [9, 9]], [[1] * 9], [[2], [3, 3]]]

    with torch.no_grad():
        check(make_policy(family, lora=lora).model, prefixes, candidates)


@pytest.mark.parametrize("dense", [0, 10_000])
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_the_sequences_alone(make_policy, monkeypatch, lora, dense):
    monkeypatch.setattr(packing, "_DENSE", dense)
    policy = make_policy("llama3", lora=lora)
    prefixes, candidates = [[5, 6, 7], [5, 6, 7, 8]], [[[8, 9, 9], [8, 9]], [[9, 9], [5]]]
    parameters = policy.parameters()
    weights = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))

    packed = pack(prefixes, candidates, want=("before",))
    ours = torch.autograd.grad(
        (encode(policy.model, packed)[packed.before] * weights).sum(), parameters, allow_unused=True
    )
    places = [
        alone(policy.model, [*p, *c])[len(p) - 1 + i]
        for p, options in zip(prefixes, candidates, strict=True)
        for c in options
        for i in range(len(c))
    ]
    theirs = torch.autograd.grad((torch.stack(places) * weights).sum(), parameters, allow_unused=True)

    assert sum(g is not None for g in ours) > len(parameters) / 2
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_each_token_stands_once_a_distinct_past():
    # state 1 is state 0 with its first candidate said: nothing of it is new but its own candidate
    packed = pack([[1, 2, 3], [1, 2, 3, 4, 5]], [[[4, 5], [4, 6]], [[7]]], want=("last",))

    assert sorted(packed.ids.tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert packed.depth[packed.ids.argsort()].tolist() == [0, 1, 2, 3, 4, 4, 5]
    assert packed.ids[packed.nodes[packed.last]].tolist() == [5, 6, 7]


def test_last_tokens_that_predict_nothing_are_left_out_where_only_predictions_are_wanted():
    packed = pack([[1, 2]], [[[3, 4], [5]]], want=("before",))

    assert packed.ids.tolist() == [1, 2, 3]
    assert packed.ids[packed.nodes[packed.before]].tolist() == [2, 3, 2]
    assert packed.targets.tolist() == [3, 4, 5]
    assert packed.owner.tolist() == [0, 0, 1]
    assert packed.lengths.tolist() == [2, 1]
    assert packed.last.numel() == packed.state.numel() == 0


def test_permuting_candidates_permutes_what_comes_out(make_policy):
    model = make_policy().model
    options = [[5, 6, 7], [5, 6], [8, 9, 9, 9]]
    with torch.no_grad():
        a, b = ([h[-1] for h in hidden_states(model, [[1, 2]], [o])[0]] for o in (options, options[::-1]))

    for x, y in zip(a, b[::-1], strict=True):
        assert_close(x, y, rtol=0, atol=1e-5)


def test_hidden_states_come_a_candidate_at_a_time(make_policy):
    model = make_policy().model
    with torch.no_grad():
        [[first, second]] = hidden_states(model, [[1, 2, 3]], [[[4, 5], [6]]])
        expected = alone(model, [1, 2, 3, 4, 5])

    assert_close(first, expected[2:4], rtol=0, atol=1e-5)
    assert_close(second, expected[2:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("prefixes", "candidates"), [([[1]], []), ([[]], [[[1]]]), ([[1]], [[[]]])])
def test_states_and_candidates_without_tokens_are_refused(prefixes, candidates):
    with pytest.raises(ValueError, match=r"state"):
        pack(prefixes, candidates)


def test_half_precision_reads_a_tree_to_its_own_rounding(make_policy):
    policy = make_policy("qwen2")
    prefixes, candidates = [[1, 2, 3, 4], [1, 2, 9]], [[[4, 5, 6], [7]], [[8, 8]]]
    packed = pack(prefixes, candidates, want=ALL)
    with torch.no_grad():
        whole = encode(policy.model, packed)
        with torch.autocast("cpu", torch.bfloat16):
            cast = encode(policy.model, packed)
        half = encode(policy.model.bfloat16(), packed)

    assert half.dtype == torch.bfloat16
    for rounded in (cast, half):
        error = (rounded.float() - whole).norm() / whole.norm()
        assert error < 0.05
