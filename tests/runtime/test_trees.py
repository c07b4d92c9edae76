"""Process trees: found whole, ended whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine.runtime import trees
from engine.store.processes import process_started

FAMILY = """
import subprocess, sys, time
own = "import time; time.sleep(600)"
one = subprocess.Popen([sys.executable, "-c", own])
two = subprocess.Popen([sys.executable, "-c", own], start_new_session=True)
print(one.pid, two.pid, flush=True)
time.sleep(600)
"""


def family() -> tuple[subprocess.Popen[str], list[int]]:
    leader = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert leader.stdout is not None
    return leader, [int(pid) for pid in leader.stdout.readline().split()]


def test_our_own_children_are_known_without_looking_at_everybody() -> None:
    leader, children = family()
    try:
        assert os.getpid() in trees.table()
        ours = trees.own_children()
        assert ours is not None
        assert leader.pid in ours
        assert not ours & set(children)
    finally:
        trees.kill_tree(leader.pid)
        leader.wait()
    assert leader.pid not in (trees.own_children() or set())


def test_a_tree_includes_sessions_that_its_members_started() -> None:
    leader, children = family()
    try:
        assert trees.members(leader.pid) == {leader.pid, *children}
        assert trees.children(leader.pid) == set(children)
        assert leader.pid in trees.children(os.getpid())
    finally:
        trees.kill_tree(leader.pid)
        leader.wait()


def test_killing_a_tree_leaves_nobody() -> None:
    leader, children = family()
    trees.kill_tree(leader.pid)
    assert leader.wait() == -9
    assert [process_started(pid) for pid in children] == [None, None]


def test_a_session_outlives_its_leader_and_is_still_found() -> None:
    leader, children = family()
    leader.kill()
    leader.wait()
    # The one in a session of its own cannot be told apart any more: that is what the nursery's adoption is for.
    assert trees.members(leader.pid) == {children[0]}
    trees.kill_tree(leader.pid)
    trees.kill_tree(children[1])
    assert [process_started(pid) for pid in children] == [None, None]


def test_a_mark_is_read_from_the_environment_that_a_process_started_with(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env={"RLX_ATTEMPT": "abc"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert trees.marked(process.pid, "RLX_ATTEMPT") == "abc"
        assert trees.marked(process.pid, "RLX") is None
    finally:
        process.kill()
        process.wait()
    assert trees.marked(process.pid, "RLX_ATTEMPT") is None
