"""YAML 1.2 with positions, nothing but plain data, and no input that costs more than its length."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.spec import reader
from engine.spec.reader import MAX_DEPTH, Unreadable, read_text, read_yaml
from engine.spec.tree import Node, Origin, plain
from tests.strategies import words

WORDS = words(max_size=12)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=25,
)


def value_of(text: str) -> Any:
    tree, problems = read_yaml(text)
    assert not problems
    return plain(tree)


def refusal(text: str) -> str:
    with pytest.raises(Unreadable) as caught:
        read_yaml(text, "f.yaml")
    return str(caught.value.problem)


@given(st.dictionaries(WORDS, JSON, max_size=5))
def test_json_is_read_as_json(data: dict[str, Any]) -> None:
    # As UTF-8: the escape of a character beyond 16 bits, as a surrogate pair, is the one thing YAML lacks.
    assert value_of(json.dumps(data, ensure_ascii=False)) == data


@given(st.dictionaries(WORDS, JSON, max_size=5), st.booleans())
def test_what_a_yaml_writer_writes_comes_back(data: dict[str, Any], flow: bool) -> None:
    # The writer quotes by YAML 1.1's rules, and writes 1e+20 as 1.0e+20.
    text = yaml.safe_dump(data, default_flow_style=flow, allow_unicode=True, sort_keys=False)

    assert value_of(text) == data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-12", -12),
        ("+1", 1),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("=", "="),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_words_mean_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = value_of(f"a: {text}")["a"]

    assert found == value
    assert type(found) is type(value)


def test_every_value_and_key_knows_its_place() -> None:
    tree, _ = read_yaml("a: 1\nb:\n  - x: |\n      hi\n    é: [1, 'two']\n", "f.yaml")
    places = {path: where[1:3] for path, where in Origin(tree).items()}

    assert places == {
        "a": (1, 1),
        "b": (2, 1),
        "b.0": (3, 5),
        "b.0.x": (3, 5),
        "b.0.é": (5, 5),
        "b.0.é.0": (5, 9),
        "b.0.é.1": (5, 12),
    }
    assert tree.at("b", 0, "x") == tree.at("b", "0", "x")
    where = tree.at("b", 0, "é", 1)
    assert where is not None
    assert where.where[:3] == ("f.yaml", 5, 12)


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_are_counted_as_editors_count_them(newline: str) -> None:
    tree, _ = read_yaml(newline.join(("# ünï", "a: 1", "", "b: 'x\u2028y'", "c: 2")), "f.yaml")

    assert [where.line for where in tree.keys.values()] == [2, 4, 5]


def test_aliases_and_merge_keys_share_what_they_name() -> None:
    tree, problems = read_yaml("a: &a {x: 1, y: 2}\nb: *a\nc: {<<: *a, y: 3}\nd: {<<: [{x: 9}, *a]}\n'<<': 1\n", "f")

    assert not problems
    assert plain(tree) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2},
        "c": {"x": 1, "y": 3},
        "d": {"x": 9, "y": 2},
        "<<": 1,
    }
    assert tree.get("a") is tree.get("b")


def test_keys_are_text_as_written() -> None:
    assert value_of("{1: a, true: b, 1.50: c, ~: d}") == {"1": "a", "true": "b", "1.50": "c", "~": "d"}


def test_several_slips_are_found_in_one_reading() -> None:
    _, problems = read_yaml("a: 1\na: 2\nb: .inf\nc: !!python/name:os.system x\nd: !x [1]\ne: 1e999\n", "f.yaml")

    assert [(p.line, p.column) for p in problems] == [(2, 1), (3, 4), (4, 4), (5, 4), (6, 4)]
    assert "line 1" in problems[0].message
    assert "!!python/name:os.system" in problems[2].message


@pytest.mark.parametrize("escape", ['"\\0"', '"\\ud800"'])
def test_text_that_no_database_takes_is_refused(escape: str) -> None:
    try:
        _, problems = read_yaml(f"a: {escape}")
    except Unreadable as error:
        problems = [error.problem]

    assert len(problems) == 1


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a:\n\t- b", "f.yaml:2:1", "spaces"),
        ("a:\n  b: 1\n\tc: 2", "f.yaml:3:1", "spaces"),
        ("a: b: c", "f.yaml:1:5", "second colon"),
        ('x: 1\na: "open\nb: 2\n', "f.yaml:2:4", "quote"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2", "bracket"),
        ("a:\n  b: 1\n c: 2", "f.yaml:3:2", "indentation"),
        ("a: {{b}}", "f.yaml:1:5", "quotes"),
        ("a: @x", "f.yaml:1:4", "quotes"),
        ("a: *nope", "f.yaml:1:4", "&nope"),
        ("a: &a [*a]", "f.yaml:1:8", "inside"),
        ("a: 1\n--- \nb: 2", "f.yaml:2:1", "second document"),
        ("", "f.yaml:1:1", "empty"),
        ("# only a comment\n", "f.yaml:1:1", "empty"),
        ("a: \x07", "f.yaml:1:4", "U+0007"),
        ("a: - b", "f.yaml:1:4", "own line"),
        ('a: "\\q"', "f.yaml:1:5", "escape"),
        ('a: "\\ud83d\\ude00"', "f.yaml:1:", "half a character"),
        ("%YAML 1.1\na: 1", "f.yaml:", "directive"),
        ("*a : 1", "f.yaml:1:1", "refers to nothing"),
        ("- &a x\n- {*a : 1}", "f.yaml:2:4", "not an alias"),
    ],
)
def test_broken_yaml_is_located_and_explained(text: str, place: str, words: str) -> None:
    said = refusal(text)

    assert said.startswith(place)
    assert words in said


def laughs(width: int, height: int) -> str:
    lines = ["l0: &l0 [" + ", ".join(["ha"] * width) + "]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * width)}]" for i in range(1, height)]
    return "\n".join(lines)


def nested_aliases(height: int) -> str:
    return "\n".join(["a0: &a0 []"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, height)])


BOMBS = {
    "billion laughs": laughs(10, 10),
    "quadratic text": f"a: &a {'x' * 200_000}\nb: [{', '.join(['*a'] * 5000)}]",
    "quadratic text, wrapped": f"a: &a [{'x' * 200_000}]\nb: [{', '.join(['*a'] * 5000)}]",
    "quadratic keys": "a: &a {" + ", ".join(f"k{i}" for i in range(2000)) + "}\nb: [" + "{<<: *a}, " * 5000 + "]",
    "brackets": "[" * 1_000_000,
    "braces": "{a: " * 200_000,
    "dashes": "- " * 500_000,
    "question marks": "? " * 500_000,
    "deep indentation": "".join(" " * i + "a:\n" for i in range(1400)),
    "deep aliases": nested_aliases(MAX_DEPTH + 1),
    "many values": "[" + "1," * 400_000 + "]",
    "merges of merges": "\n".join(
        ["a0: &a0 {k0: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}" for i in range(1, 12)]
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(name: str) -> None:
    said = refusal(BOMBS[name])

    assert "more than" in said or "a key must be a word" in said


def test_the_depth_and_count_allowed_are_allowed() -> None:
    assert value_of("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert len(value_of("[" + "1," * 50_000 + "]")) == 50_000
    assert refusal("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_aliases_are_counted_as_often_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_NODES", 1 + 4 + 4 * 3)
    text = "- &a [1, 2, 3]\n" + "- *a\n" * 3

    assert value_of(text) == [[1, 2, 3]] * 4  # 1 list, 4 lists in it, 3 numbers in each
    monkeypatch.setattr(reader, "MAX_NODES", 1 + 4 + 4 * 3 - 1)
    assert "more than" in refusal(text)


def test_the_pure_python_parser_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a: &x {b: [1, 2.5, no]}\nc: |\n  text\nd: *x\n"
    expected = dict(Origin(read_yaml(text, "f")[0]).items())
    monkeypatch.setattr(reader, "_LOADER", yaml.SafeLoader)

    tree, _ = read_yaml(text, "f")

    assert dict(Origin(tree).items()) == expected
    assert plain(tree) == {"a": {"b": [1, 2.5, "no"]}, "c": "text\n", "d": {"b": [1, 2.5, "no"]}}
    for name, bomb in BOMBS.items():
        if len(bomb) < 10_000:
            assert refusal(bomb), name


@given(st.text(st.sampled_from("ab:-[]{}&*!|>'\"%@`#,? \n\t\\0."), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Unreadable):
        tree, _ = read_yaml(text, "f.yaml")
        assert isinstance(tree, Node)


class TestFiles:
    def test_too_large(self, tmp_path: Any) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(b"#" * (reader.MAX_BYTES + 1))

        with pytest.raises(Unreadable, match="larger than 1 MiB"):
            read_text(path)

    def test_not_a_file(self, tmp_path: Any) -> None:
        with pytest.raises(Unreadable, match="not a file"):
            read_text(tmp_path)

    def test_not_utf8(self, tmp_path: Any) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes("a: 1\nb: é".encode("latin-1"))

        with pytest.raises(Unreadable) as caught:
            read_text(path)
        assert (caught.value.problem.line, caught.value.problem.column) == (2, 4)

    def test_a_byte_order_mark_is_no_content(self, tmp_path: Any) -> None:
        path = tmp_path / "a.yaml"
        path.write_bytes(b"\xef\xbb\xbfa: 1")

        assert read_text(path) == "a: 1"
