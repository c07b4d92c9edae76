"""A problem shown in its source."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import Problem
from engine.spec.diagnostics import MAX_PROBLEMS, in_order, render

SOURCE = "name: x\nranker:\n  candidats: 8\n  kind: 'no such'\n"


def test_the_line_before_the_line_and_a_caret() -> None:
    shown = render(Problem("unknown", "ranker.candidats", "s.yaml", 3, 3), SOURCE)

    assert shown.splitlines() == [
        "s.yaml:3:3: unknown",
        "  2 | ranker:",
        "  3 |   candidats: 8",
        "    |   ^~~~~~~~~",
    ]


@pytest.mark.parametrize(
    ("line", "column", "caret"),
    [(1, 7, "      ^"), (4, 9, "        ^~~~~~~~~"), (2, 1, "^~~~~~"), (3, 99, "              ^")],
)
def test_the_caret_underlines_what_begins_there(line: int, column: int, caret: str) -> None:
    shown = render(Problem("m", "", "s.yaml", line, column), SOURCE)

    assert shown.splitlines()[-1] == f"    | {caret}"


def test_a_long_line_is_cut_around_the_place() -> None:
    source = "items: [" + "x, " * 2000 + "bad, " + "y, " * 2000 + "]"
    column = source.index("bad") + 1

    _, line, caret = render(Problem("m", "", "s.yaml", 1, column), source).splitlines()

    assert len(line) < 130
    assert line[caret.index("^") : caret.index("^") + 3] == "bad"


@pytest.mark.parametrize("problem", [Problem("m"), Problem("m", "", "s.yaml"), Problem("m", "", "s.yaml", 99, 1)])
def test_without_a_place_only_the_message_is_shown(problem: Problem) -> None:
    assert render(problem, SOURCE) == str(problem)


@given(st.text(max_size=300), st.integers(0, 20), st.integers(1, 400) | st.none())
def test_any_place_in_any_text_can_be_shown(source: str, line: int, column: int | None) -> None:
    shown = render(Problem("m", "", "s.yaml", line, column), source)

    assert shown.startswith("s.yaml:")
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_problems_are_sorted_by_place_without_repetitions() -> None:
    first, second, other = (Problem("m", "", *place) for place in (("a", 1, 5), ("a", 2, 1), ("b", 1, 1)))

    assert in_order([second, other, first, second]) == [first, second, other]


def test_very_many_are_cut_short() -> None:
    shown = in_order(Problem("m", "", "a", line, 1) for line in range(MAX_PROBLEMS + 7))

    assert len(shown) == MAX_PROBLEMS + 1
    assert shown[-1].message == "and 7 more problems"
