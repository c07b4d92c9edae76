"""Differences of trees, by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.compare.diff import ABSENT, Difference, differences

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


def test_one_changed_leaf_is_one_difference():
    a = {"seed": 0, "algorithm": {"name": "archer", "ranker": {"candidates": 8}}}
    b = {"seed": 0, "algorithm": {"name": "archer", "ranker": {"candidates": 4}}}
    assert differences(a, b) == [Difference("algorithm.ranker.candidates", 8, 4)]


def test_a_missing_key_is_not_null():
    (found,) = differences({"lora": None}, {})
    assert found == Difference("lora", None, ABSENT)
    assert found.as_json() == {"path": "lora", "a": None}


def test_lists_of_one_length_are_compared_by_place_and_others_whole():
    assert differences({"items": [1, {"p": 2}]}, {"items": [1, {"p": 3}]}) == [Difference("items[1].p", 2, 3)]
    assert differences({"items": [1]}, {"items": [1, 2]}) == [Difference("items", [1], [1, 2])]


def test_true_is_not_one_but_one_is_one_point_zero():
    assert differences({"x": True}, {"x": 1}) == [Difference("x", True, 1)]
    assert differences({"x": 1}, {"x": 1.0}) == []


@given(TREES)
def test_a_tree_does_not_differ_from_itself(tree):
    assert differences(tree, tree) == []


@given(TREES, TREES)
def test_unequal_trees_always_show_a_difference(a, b):
    assert (differences(a, b) == []) == (repr(_plain(a)) == repr(_plain(b)))


def _plain(tree):
    if isinstance(tree, dict):
        return {key: _plain(tree[key]) for key in sorted(tree)}
    return [_plain(item) for item in tree] if isinstance(tree, list) else tree
