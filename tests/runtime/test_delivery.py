"""Reports reach the store in order and once, whatever the database does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy.orm import Session

from engine.errors import DataError, StaleAttempt, Unreachable
from engine.runtime.delivery import Delivery, Report
from engine.runtime.task import Task
from engine.store import events
from engine.store.session import Database

pytestmark = pytest.mark.parametrize("db", ["sqlite"], indirect=True)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Flaky:
    """A database that is away for the first `outages` transactions, half of them after the commit's work was done."""

    def __init__(self, db: Database, outages: int) -> None:
        self.db, self.outages, self.tries = db, outages, 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.tries += 1
        if self.tries <= self.outages and self.tries % 2:
            raise Unreachable("away")
        with self.db.write() as session:
            yield session
            if self.tries <= self.outages:
                raise Unreachable("went away before the commit")


def told(db: Database, task: Task) -> list[str]:
    with db.read() as session:
        return [event.message for event in events.of_run(session, task.claimed.run_id) if event.kind == "test"]


def say(task: Task, message: str) -> Callable[[Session], None]:
    return lambda session: events.add(session, "test", message, now=NOW, run_id=task.claimed.run_id)


def delivery(db: Database | Flaky, task: Task) -> Delivery:
    return Delivery(lambda: db, task.claimed.stage_id, task.claimed.number, retry_s=0.01)  # type: ignore[arg-type,return-value]


def test_reports_arrive_in_order(db: Database, claim: Callable[..., Task]) -> None:
    task = claim()
    out = delivery(db, task)
    words = [f"{index}" for index in range(500)]
    for word in words:
        out.put(Report(say(task, word)))
    out.drain(30)

    assert told(db, task) == words


@pytest.mark.parametrize("outages", [1, 2, 5])
def test_an_outage_loses_nothing_and_doubles_nothing(db: Database, claim: Callable[..., Task], outages: int) -> None:
    task = claim()
    flaky = Flaky(db, outages)
    out = delivery(flaky, task)
    words = [f"{index}" for index in range(50)]
    for word in words:
        out.put(Report(say(task, word)))
    out.drain(30)

    assert flaky.tries > outages
    assert told(db, task) == words


def test_work_before_and_after_a_report_happens_in_its_place(db: Database, claim: Callable[..., Task]) -> None:
    task = claim()
    seen: list[list[str]] = []
    out = delivery(db, task)
    out.put(Report(say(task, "one")))
    out.put(
        Report(
            say(task, "two"),
            before=lambda: seen.append(told(db, task)),
            after=lambda: seen.append(told(db, task)),
        )
    )
    out.put(Report(say(task, "three")))
    out.drain(30)

    assert seen == [["one"], ["one", "two"]]
    assert told(db, task) == ["one", "two", "three"]


def test_a_stale_attempt_is_told_and_writes_nothing(db: Database, claim: Callable[..., Task]) -> None:
    stale = claim()
    claim(after=stale)
    out = delivery(db, stale)
    out.put(Report(say(stale, "late")))

    with pytest.raises(StaleAttempt):
        out.drain(30)
    assert out.stale
    with pytest.raises(StaleAttempt):
        out.put(Report(say(stale, "later")))
    assert told(db, stale) == []


def test_a_report_that_the_store_cannot_hold_is_raised_at_the_next(db: Database, claim: Callable[..., Task]) -> None:
    def refuse(session: Session) -> None:
        raise DataError("not a number")

    out = delivery(db, claim())
    out.put(Report(refuse))
    with pytest.raises(DataError, match="not a number"):
        out.drain(30)


def test_waiting_for_a_database_that_stays_away_ends(db: Database, claim: Callable[..., Task]) -> None:
    task = claim()
    out = delivery(Flaky(db, 10**9), task)
    out.put(Report(say(task, "never")))
    with pytest.raises(Unreachable):
        out.drain(0.1)
    out.close()


def test_of_replaceable_news_the_last_arrives(db: Database, claim: Callable[..., Task]) -> None:
    task = claim()
    out = delivery(db, task)
    gate = threading.Event()
    out.put(Report(say(task, "first"), before=gate.wait))  # type: ignore[arg-type]
    for index in range(100):
        out.replace(say(task, f"news {index}"))
    gate.set()
    out.drain(30)

    assert told(db, task)[-1] == "news 99"
    assert len(told(db, task)) <= 4
