"""How a thread that writes beside a training loop shares the interpreter with it, so that no step is late for long.

A thread that holds the interpreter's lock gives it away after the switch interval at the latest, five milliseconds
unless told otherwise, and a training loop in pure Python takes it back as late. So the interval is made short, and
the writing thread rests after each slice of work for longer than the slice took.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SWITCH_S = 3e-4
_SHORTEST_S, _LONGEST_S = 2e-5, 2e-3
_REST = 2.0
"""Seconds for each second of work."""
_BREATH_S = 1e-4
"""How long foreign code works at a time."""

_own = threading.local()


def switch_often() -> None:
    """Have the interpreter go from hand to hand within SWITCH_S. For the whole process, which should be a stage's."""
    sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))


def be_patient(hurry: Callable[[], bool]) -> None:
    """From now on this thread works in the background: it rests longer than it works, unless there is `hurry`."""
    _own.hurry, _own.since = hurry, time.thread_time()


def patient() -> bool:
    """Whether this thread has time."""
    hurry = getattr(_own, "hurry", None)
    return hurry is not None and not hurry()


def give_way() -> None:
    """Let another thread have the interpreter, if one waits for it.

    Long enough for it to wake up: after a sleep of zero, or a statement as short, we would have it back before.
    """
    if not patient():
        time.sleep(_SHORTEST_S)
        return
    worked = time.thread_time() - _own.since
    time.sleep(min(max(_SHORTEST_S, _REST * worked), _LONGEST_S))
    _own.since = time.thread_time()


@contextmanager
def resting_within() -> Iterator[None]:
    """Give way also in the middle of what is called in this block, if this thread has time.

    For foreign code in Python that computes for milliseconds once, such as the compilation of a statement: a training
    loop would get every second turn only. It is looked at wherever it calls a function, which costs it half its speed.
    """
    if not patient() or sys.getprofile() is not None:
        yield
        return
    sys.setprofile(_breathe)
    try:
        yield
    finally:
        sys.setprofile(None)


def _breathe(frame: FrameType, event: str, argument: Any) -> None:
    if time.thread_time() - _own.since > _BREATH_S:
        give_way()
