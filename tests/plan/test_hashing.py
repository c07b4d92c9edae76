"""The same content has the same name; anything a stage reads changes it; nothing else does."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.hashing import cache_key, canonical, sha256_of
from engine.plan.stage import Resources, Stage

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
STAGE = Stage(
    name="train",
    kind="archer.train",
    run="m:f",
    reads=("algorithm",),
    inputs={"model": "model"},
    config={"algorithm": {"lr": 0.1}},
)
KEY = cache_key(STAGE, 0, {"model": "aa"})


def test_canonical_form_is_sorted_compact_json() -> None:
    assert canonical({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()
    assert sha256_of({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_whole_floats_and_integers_are_the_same_number() -> None:
    assert sha256_of({"lr": 1.0}) == sha256_of({"lr": 1})
    assert sha256_of(True) != sha256_of(1)


@given(st.dictionaries(st.text(), JSON, max_size=6))
def test_the_order_of_keys_does_not_count(value: dict[str, object]) -> None:
    assert sha256_of(value) == sha256_of(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        canonical({"x": value})


@pytest.mark.parametrize("value", [{1: "a"}, {"x": object()}, {"x": {1, 2}}])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "archer.other"},
        {"version": 2},
        {"config": {"algorithm": {"lr": 0.2}}},
        {"extra": {"iteration": 1}},
    ],
)
def test_what_a_stage_computes_from_changes_its_key(change: dict[str, object]) -> None:
    assert cache_key(replace(STAGE, **change), 0, {"model": "aa"}) != KEY  # type: ignore[arg-type]


def test_seed_and_input_hashes_change_the_key() -> None:
    assert cache_key(STAGE, 1, {"model": "aa"}) != KEY
    assert cache_key(STAGE, 0, {"model": "bb"}) != KEY


@pytest.mark.parametrize("change", [{"name": "other"}, {"resources": Resources(gpus=4)}, {"run": "m:g"}])
def test_where_and_under_what_name_it_runs_does_not(change: dict[str, object]) -> None:
    assert cache_key(replace(STAGE, **change), 0, {"model": "aa"}) == KEY  # type: ignore[arg-type]


def test_an_input_without_a_hash_has_no_key_yet() -> None:
    with pytest.raises(ValueError, match="model"):
        cache_key(STAGE, 0, {})


def test_a_file_counts_by_its_content_and_not_by_its_place() -> None:
    def key(file: str, sha256: str | None) -> str:
        config = {"dataset": {"items": {"file": file, "sha256": sha256}}, "model": {"warmup": {"file": None}}}
        return cache_key(replace(STAGE, config=config), 0, {"model": "aa"})

    assert key("/here/a.jsonl", "f00") == key("/there/a.jsonl", "f00")
    assert key("/here/a.jsonl", "f00") != key("/here/a.jsonl", "bar")
    assert key("/here/a.jsonl", None) != key("/there/a.jsonl", None)
