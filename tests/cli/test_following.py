"""Following a run: until it is over, through outages, and not for ever after a dead worker."""

from __future__ import annotations

import pytest

from engine.cli.following import Followed, exit_code, follow
from engine.cli.progress import Snapshot
from engine.errors import Unreachable

RUNNING, DONE = Snapshot("r-1", "running"), Snapshot("r-1", "succeeded")


class Scribe:
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.said: list[str] = []

    def update(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot.status)

    def message(self, text: str) -> None:
        self.said.append(text)

    def close(self) -> None: ...


def script(*events: Snapshot | Exception):
    pending = list(events)

    def read() -> Snapshot:
        event = pending.pop(0)
        if isinstance(event, Exception):
            raise event
        return event

    return read


def nothing() -> None: ...


def test_snapshots_are_shown_until_the_run_is_over():
    scribe = Scribe()
    assert follow(script(RUNNING, RUNNING, DONE), scribe, wait=nothing) == Followed(DONE)
    assert scribe.seen == ["running", "running", "succeeded"]


def test_an_outage_is_said_once_and_waited_for():
    scribe = Scribe()
    away = Unreachable("no answer")
    followed = follow(script(RUNNING, away, away, RUNNING, DONE), scribe, wait=nothing)
    assert followed.snapshot == DONE
    assert [line.split(" (")[0] for line in scribe.said] == ["the database does not answer", "the database is back"]


def test_a_store_that_was_never_there_is_an_error():
    with pytest.raises(Unreachable):
        follow(script(Unreachable("no answer")), Scribe(), wait=nothing)


def test_a_dead_worker_ends_the_following_with_its_reason():
    followed = follow(script(RUNNING, RUNNING), Scribe(), wait=nothing, lost=lambda: "the worker left")
    assert followed == Followed(RUNNING, "the worker left")
    assert exit_code(followed) == 1


def test_a_worker_that_left_after_its_work_is_no_loss():
    followed = follow(script(RUNNING, DONE), Scribe(), wait=nothing, lost=lambda: "the worker left")
    assert followed == Followed(DONE)
    assert exit_code(followed) == 0


def test_waiting_for_a_stop_has_an_end():
    followed = follow(script(RUNNING), Scribe(), wait=nothing, give_up=lambda: True)
    assert followed.lost == "it is still stopping"


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_exit_codes_of_what_was_waited_for(status, code):
    assert exit_code(Followed(Snapshot("r-1", status))) == code
