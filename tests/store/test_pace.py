from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import pytest

from engine.store import pace


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of every rest that is taken; none is slept."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let processor time pass for whoever asks."""
    spent = 0.0

    def go_on(seconds: float) -> None:
        nonlocal spent
        spent += seconds

    monkeypatch.setattr(time, "thread_time", lambda: spent)
    return go_on


@pytest.fixture
def background() -> Callable[[Callable[[], None]], None]:
    """Run something in a thread of its own."""

    def run(what: Callable[[], None]) -> None:
        thread = threading.Thread(target=what)
        thread.start()
        thread.join()

    return run


def test_in_the_background_rests_are_twice_as_long_as_the_work(
    rests: list[float], work: Callable[[float], None], background: Callable[[Callable[[], None]], None]
) -> None:
    hurry = False

    def write() -> None:
        nonlocal hurry
        pace.be_patient(lambda: hurry)
        for seconds in (0.0003, 0.0005, 0.0, 1.0):
            work(seconds)
            pace.give_way()
        hurry = True
        work(0.0003)
        pace.give_way()

    background(write)
    shortest, longest = min(rests), 0.002
    assert rests == pytest.approx([0.0006, 0.001, shortest, longest, shortest])


def test_who_is_waited_for_makes_way_and_no_more(rests: list[float], work: Callable[[float], None]) -> None:
    work(0.5)
    pace.give_way()
    assert rests == [2e-5]


def test_the_interpreter_goes_from_hand_to_hand_sooner_and_never_later(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(sys, "setswitchinterval", told.append)
    monkeypatch.setattr(sys, "getswitchinterval", lambda: 0.005)
    pace.switch_often()
    monkeypatch.setattr(sys, "getswitchinterval", lambda: 1e-5)
    pace.switch_often()
    assert told == [pace.SWITCH_S, 1e-5]


def test_within_foreign_code_it_rests_too(
    rests: list[float], work: Callable[[float], None], background: Callable[[Callable[[], None]], None]
) -> None:
    def foreign() -> None:
        for _ in range(4):
            work(0.00015)
            len("it calls something")

    left: list[object] = []

    def write() -> None:
        pace.be_patient(lambda: False)
        with pace.resting_within():
            foreign()
        left.append(sys.getprofile())
        foreign()

    background(write)

    assert rests == pytest.approx([0.0003] * 4)
    assert left == [None]


def test_who_is_waited_for_does_not_rest_within(rests: list[float], work: Callable[[float], None]) -> None:
    with pace.resting_within():
        work(1.0)
        len("it calls something")
    assert rests == []
