"""Reports reach the store in order and once, whatever the database does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.errors import DataError, DiskError, StaleAttempt
from engine.runtime import checkpoint
from engine.runtime import delivery as module
from engine.runtime.context import Sample
from engine.runtime.delivery import Delivery, Hooks
from engine.runtime.reports import Checkpointed, Progressed, Reporter, Sampled
from engine.runtime.spool import Spool
from engine.runtime.task import Task
from engine.store import checkpoints, stages
from engine.store.session import Database
from engine.store.tables import Sample as Row
from tests.runtime.conftest import NOW
from tests.runtime.outages import Line
from tests.runtime.test_spool import no_file_longer_than
from tests.waiting import until

pytestmark = pytest.mark.parametrize("db", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


@pytest.fixture
def line(db: Database) -> Iterator[Line]:
    line = Line(db.url)
    yield line
    line.close()


Deliver = Callable[..., Delivery]


@pytest.fixture
def deliver(line: Line) -> Iterator[Deliver]:
    made: list[tuple[Delivery, Spool]] = []

    def deliver(task: Task, **hooks: Callable[[], None]) -> Delivery:
        claimed = task.claimed
        spool = Spool.open(task.settings.spool, claimed.stage_id, claimed.number)
        reporter = Reporter(claimed.run_id, claimed.stage_id, claimed.number)
        made.append((Delivery(lambda: line, reporter, spool, Hooks(**hooks), retry_s=0.01), spool))
        return made[-1][0]

    yield deliver
    for delivery, spool in made:
        delivery.close(30)
        spool.close()


def told(db: Database, task: Task) -> list[str]:
    rows = select(Row.text).where(Row.stage_id == task.claimed.stage_id).order_by(Row.attempt, Row.sequence)
    with db.read() as session:
        return list(session.scalars(rows))


def say(place: int, text: str | None = None) -> Sampled:
    return Sampled(place, (Sample(place, text if text is not None else f"{place}"),))


def recorded(task: Task, step: int) -> Checkpointed:
    folder = task.checkpoints / "attempt-1" / f"step-{step}"
    manifest = checkpoint.write(folder, step, {})
    return Checkpointed(step, ("latest",), str(folder), manifest.sha256, manifest.bytes, NOW)


def lines(task: Task) -> int:
    files = list(task.settings.spool.glob("*/reports.jsonl"))
    return sum(file.read_bytes().count(b"\n") for file in files)


def test_reports_arrive_in_order(db: Database, claim: Callable[..., Task], deliver: Deliver) -> None:
    task = claim()
    out = deliver(task)
    for place in range(500):
        out.put(say(place))
    assert out.settle(30)
    assert told(db, task) == [f"{place}" for place in range(500)]
    assert lines(task) == 0


@pytest.mark.parametrize(
    "fates", [["refused"], ["rolled back"], ["unheard"], ["refused", "unheard", "rolled back"] * 3]
)
def test_an_outage_loses_nothing_and_doubles_nothing(
    db: Database, claim: Callable[..., Task], deliver: Deliver, line: Line, fates: list[str]
) -> None:
    task = claim()
    line.fates = list(fates)
    out = deliver(task)
    for place in range(50):
        out.put(say(place))
    assert out.settle(30)
    assert line.tries > len(fates)
    assert told(db, task) == [f"{place}" for place in range(50)]


def test_while_the_database_is_away_reports_wait_on_the_disk(
    db: Database, claim: Callable[..., Task], deliver: Deliver, line: Line
) -> None:
    task = claim()
    line.cut = True
    out = deliver(task)
    for place in range(300):
        out.put(say(place))
    until(lambda: lines(task) == 300 and out._size == 0)
    assert not out.settle(0.05)
    line.cut = False
    assert out.settle(30)
    assert told(db, task) == [f"{place}" for place in range(300)]
    assert lines(task) == 0


def test_what_is_being_sent_keeps_its_place_when_the_rest_goes_to_the_disk(
    db: Database, claim: Callable[..., Task], deliver: Deliver, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that neither answers nor refuses: the stage goes on, and a crash would find all of it in order."""
    task = claim()
    monkeypatch.setattr(module, "HELD", 10)
    line.hold = threading.Event()
    line.fates = ["refused", "unheard", "rolled back"]
    out = deliver(task)
    out.put(say(0))
    until(lambda: line.tries)
    for place in range(1, 30):
        out.put(say(place))
    assert lines(task) >= 10
    (file,) = task.settings.spool.glob("*/reports.jsonl")
    assert file.read_text().startswith('["samples",{"first":0,')
    line.hold.set()
    assert out.settle(30)
    assert told(db, task) == [f"{place}" for place in range(30)]


def test_a_checkpoint_goes_to_the_disk_only_after_what_was_reported_in_other_ways(
    claim: Callable[..., Task], deliver: Deliver, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = claim()
    monkeypatch.setattr(module, "HELD", 10)
    line.cut = True
    kept, full = [0], [True]

    def keep() -> None:
        if full[0]:
            raise DiskError("no space for metrics")
        kept[0] += 1

    out = deliver(task, before_spooling=keep)
    out.put(say(0))
    out.put(recorded(task, 1))
    for place in range(1, 30):
        out.put(say(place))
    tries = line.tries
    until(lambda: line.tries > tries + 2)
    assert lines(task) <= 1
    full[0] = False
    until(lambda: lines(task) == 31)
    assert kept[0] >= 1


def test_work_around_a_checkpoint_happens_in_its_place(
    db: Database, claim: Callable[..., Task], deliver: Deliver
) -> None:
    task = claim()
    seen: list[tuple[list[str], int]] = []

    def look() -> None:
        with db.read() as session:
            seen.append((told(db, task), len(checkpoints.of_stage(session, task.claimed.stage_id))))

    out = deliver(task, before_checkpoint=look, after_checkpoint=look)
    out.put(say(0))
    assert out.settle(30)
    out.put(recorded(task, 1))
    out.put(say(1))
    assert out.settle(30)
    assert seen == [(["0"], 0), (["0"], 1)]
    assert told(db, task) == ["0", "1"]


def test_a_stale_attempt_is_told_and_writes_nothing(db: Database, claim: Callable[..., Task], deliver: Deliver) -> None:
    stale = claim()
    claim(after=stale)
    out = deliver(stale)
    out.put(say(0, "late"))

    with pytest.raises(StaleAttempt):
        out.settle(30)
    assert out.stale
    with pytest.raises(StaleAttempt):
        out.put(say(1, "later"))
    assert told(db, stale) == []


def test_a_report_that_the_store_cannot_hold_is_raised_at_the_next(
    claim: Callable[..., Task], deliver: Deliver
) -> None:
    class Refused(Sampled):
        def write(self, session: Session, reporter: Reporter) -> None:
            raise DataError("not a number")

    out = deliver(claim())
    out.put(Refused(0, (Sample(0, "a"),)))
    with pytest.raises(DataError, match="not a number"):
        out.settle(30)


def test_a_disk_that_is_full_too_stops_the_stage_before_its_memory_is(
    db: Database, claim: Callable[..., Task], deliver: Deliver, line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = claim()
    monkeypatch.setattr(module, "HELD", 10)
    monkeypatch.setattr(module, "MOST_HELD", 50)
    line.cut = True
    out = deliver(task)
    put = 0
    with no_file_longer_than(200):

        def put_many() -> None:
            nonlocal put
            for place in range(1000):
                out.put(say(place))
                put += 1

        with pytest.raises(DiskError, match="Free some space"):
            put_many()
        assert 50 <= put < 200
        with pytest.raises(DiskError):
            out.settle(0.01, within_s=0.05)
    line.cut = False
    assert out.settle(30)  # nothing that was accepted is lost
    assert told(db, task) == [f"{place}" for place in range(put)]


def test_of_replaceable_news_the_last_arrives(db: Database, claim: Callable[..., Task], deliver: Deliver) -> None:
    task = claim()
    gate = threading.Event()
    out = deliver(task, before_checkpoint=lambda: assert_(gate.wait(60)))
    out.put(recorded(task, 1))
    for done in range(100):
        out.replace(Progressed(done, 100, f"news {done}", NOW))
    gate.set()
    assert out.settle(30)
    with db.read() as session:
        (stage,) = stages.for_run(session, task.claimed.run_id)
    assert (stage.done, stage.note) == (99, "news 99")


def test_the_last_news_waits_on_the_disk_too(claim: Callable[..., Task], deliver: Deliver, line: Line) -> None:
    task = claim()
    line.cut = True
    out = deliver(task)
    out.replace(Progressed(1, 1, "through", NOW))
    until(lambda: line.tries)
    assert not out.settle(0.05)
    assert lines(task) == 1


def assert_(value: object) -> None:
    assert value


def test_memory_stays_small_however_long_the_database_is_away(
    db: Database, claim: Callable[..., Task], deliver: Deliver, line: Line
) -> None:
    import tracemalloc

    task = claim()
    line.cut = True
    out = deliver(task)
    text = "x" * 300
    most = 0
    tracemalloc.start()
    for place in range(100_000):
        out.put(say(place, f"{place} {text}"))
        most = max(most, out._size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not out.settle(0.05)
    spooled = sum(file.stat().st_size for file in Path(task.settings.spool).glob("*/reports.jsonl"))
    assert spooled > 40_000_000
    assert most <= 2 * module.HELD
    assert peak < 15_000_000

    line.cut = False
    assert out.settle(60)
    assert told(db, task) == [f"{place} {text}" for place in range(100_000)]
