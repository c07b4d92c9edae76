"""`key=value` on the command line: parsed as YAML, laid over the file, spread out into a sweep."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SpecError
from engine.spec.overrides import expand, layer, split_commas
from engine.spec.tree import plain

WORD = st.from_regex(r"[a-z]{1,5}", fullmatch=True)


def tree_of(*overrides: str) -> Any:
    node, problems = layer(overrides)
    assert not problems
    return plain(node)


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("1", ["1"]),
        ("1,2,3", ["1", "2", "3"]),
        ("[1,2]", ["[1,2]"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("{a: 1, b: 2}", ["{a: 1, b: 2}"]),
        ('"a,b"', ['"a,b"']),
        ("'a,b',c", ["'a,b'", "c"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        ("it's,ok", ["it's", "ok"]),
        ("", [""]),
        (",", ["", ""]),
    ],
)
def test_commas_outside_brackets_and_quotes_part_values(value: str, parts: list[str]) -> None:
    assert split_commas(value) == parts


@given(st.dictionaries(WORD, st.lists(st.integers(), min_size=1, max_size=3), max_size=4))
def test_a_sweep_is_the_product_of_its_values(axes: dict[str, list[int]]) -> None:
    overrides = [f"{key}={','.join(map(str, values))}" for key, values in axes.items()]

    expected = [[f"{k}={v}" for k, v in zip(axes, point, strict=True)] for point in itertools.product(*axes.values())]
    assert expand(overrides) == expected


@pytest.mark.parametrize("overrides", [["a=1,,2"], ["a=1,2,"], ["a=" + ",".join("1" * 40), "b=" + ",".join("1" * 40)]])
def test_a_sweep_that_makes_no_sense_is_refused(overrides: list[str]) -> None:
    with pytest.raises(SpecError):
        expand(overrides)


def test_values_are_yaml() -> None:
    assert tree_of("a.b=1e-3", "a.c=[x, 2]", "d={e: true}", "f=null", "g=", "h=no", "i='1'", "j=scratch:nano") == {
        "a": {"b": 0.001, "c": ["x", 2]},
        "d": {"e": True},
        "f": None,
        "g": None,
        "h": "no",
        "i": "1",
        "j": "scratch:nano",
    }


@pytest.mark.parametrize(
    "override", ["seed", "=1", ".a=1", "a..b=1", "a b=1", "a=[1", "a=b: c: d", "a=!!python/none x", "a=1,2", "a=\ud800"]
)
def test_a_broken_override_is_named(override: str) -> None:
    _, problems = layer([override])

    assert len(problems) == 1
    assert repr(override) in problems[0].message


def test_one_key_is_overridden_once() -> None:
    _, problems = layer(["seed=1", "seed=2"])

    assert "twice" in problems[0].message
