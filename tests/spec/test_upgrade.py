"""The version comes first; older specs are brought up to date, newer ones are not guessed at."""

from __future__ import annotations

from typing import Any

import pytest

from engine.spec.tree import Node, from_plain, plain
from engine.spec.upgrade import upgraded


def test_the_current_version_stays_as_it_is() -> None:
    root = from_plain({"version": 1, "name": "a"})

    assert upgraded(root) == (root, [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "a"}, "version: 1"),
        ({"version": "1"}, "version: 1"),
        ({"version": True}, "version: 1"),
        ({"version": None}, "empty"),
        ({"version": 2}, "upgrade rlx"),
        ({"version": 0}, "version: 1"),
        ({"items": [], "score_fn": ""}, "this is a dataset"),
    ],
)
def test_another_version_is_refused_with_a_fix(data: Any, words: str) -> None:
    _, problems = upgraded(from_plain(data))

    assert [problem.path for problem in problems] == ["version"]
    assert words in problems[0].message


def test_migrations_follow_each_other_in_order() -> None:
    def renamed(old: str, new: str) -> Any:
        return lambda root: root.without(old).with_key(new, root.get(old) or Node(None))

    migrations = {1: renamed("a", "b"), 2: renamed("b", "c")}

    root, problems = upgraded(from_plain({"version": 1, "a": 5}), current=3, migrations=migrations)

    assert not problems
    assert plain(root) == {"version": 3, "c": 5}
