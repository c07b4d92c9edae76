"""A stage under outages and crashes ends with the store that it would have left undisturbed."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from engine.errors import DiskError, StaleAttempt
from engine.runtime import delivery, engine_context, left_behind
from engine.runtime.context import Evaluation, ItemScore, Sample
from engine.runtime.engine_context import EngineContext
from engine.runtime.manifest import MANIFEST
from engine.runtime.task import Task
from engine.store import checkpoints, connection, evaluations, metrics, samples, stages
from engine.store.session import Database
from engine.store.tables import Sample as Row
from tests.runtime.conftest import NOW
from tests.runtime.outages import Line, kill
from tests.runtime.test_engine_context import no_functions
from tests.runtime.test_spool import no_file_longer_than
from tests.waiting import until

Claim = Callable[..., Task]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "_PAUSE_S", 0.0)
    monkeypatch.setattr(engine_context, "PATIENCE_S", 0.05)
    monkeypatch.setattr(left_behind, "WAIT_S", 0.2)


@dataclass(frozen=True)
class Step:
    """What the stage reports at one step, and what befalls it afterwards."""

    samples: int
    evaluation: bool
    checkpoint: bool
    then: str
    fates: tuple[str, ...]
    torn: bool


STEPS = st.lists(
    st.builds(
        Step,
        samples=st.integers(0, 3),
        evaluation=st.booleans(),
        checkpoint=st.booleans(),
        then=st.sampled_from(
            ["", "", "", "cut", "mend", "rest", "killed", "worker dies", "host dies", "goes elsewhere", "drained"]
        ),
        fates=st.lists(st.sampled_from(["refused", "rolled back", "unheard", "fine"]), max_size=3).map(tuple),
        torn=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


class Stage:
    """A stage whose every report follows from its step; its attempts, and the hosts that they run on."""

    def __init__(self, db: Database, claim: Claim) -> None:
        self.db, self.claim = db, claim
        self.begin(claim())

    def begin(self, task: Task) -> None:
        self.task = task
        self.line = Line(self.db.url)
        self.ctx = EngineContext(task, no_functions, threading.Event(), retry_s=0.005)
        vars(self.ctx)["_db"] = self.line
        restored = self.ctx.restore()
        self.done = 0 if restored is None else restored.step
        if restored is not None:
            assert restored.state == {"done": self.done}

    @property
    def spool(self) -> Path:
        return self.task.settings.spool

    def work(self, step: Step) -> None:
        self.done += 1
        done = self.done
        self.ctx.log(done, loss=done / 7)
        for n in range(step.samples):
            self.ctx.sample(Sample(done, f"{done}.{n}", score=n / 3, data={"n": [n]}))
        if step.evaluation:
            self.ctx.evaluation(Evaluation(done, "score", [ItemScore(0, (float(done), 0.5))]))
        if step.checkpoint:
            self.ctx.checkpoint(done, {"done": done})

    def befall(self, step: Step) -> None:
        self.line.fates += step.fates
        match step.then:
            case "cut":
                self.line.cut = True
            case "mend":
                self.line.cut = False
            case "rest":
                self.line.cut = False
                until(self.ctx.deliver)
            case "killed" | "worker dies" | "host dies" | "goes elsewhere":
                kill(self.ctx, self.line, torn=step.torn)
                self.come_back(step.then)
            case "drained":
                self.ctx.deliver()
                self.ctx.close()
                self.come_back("killed")

    def come_back(self, after: str) -> None:
        old = self.task
        if after == "killed":  # its supervisor lives, and waits for the store
            left_behind.deliver_for(self.spool, self.db, old.claimed)
        if after == "worker dies":  # another worker gives it up, and ours delivers before anybody has claimed the stage
            with self.db.write() as session:
                stages.lose(session, old.claimed.run_id, old.claimed.attempt_id, now=NOW)
            left_behind.deliver_all(self.spool, self.db)
        hidden = self.spool.with_name("spool of another host")
        if after == "goes elsewhere" and self.spool.exists():
            self.spool.rename(hidden)
        self.begin(self.claim(after=old))
        if hidden.exists():  # and the first host comes back, too late
            self.spool.mkdir(exist_ok=True)
            for folder in hidden.iterdir():
                folder.rename(self.spool / folder.name)
            hidden.rmdir()

    def end(self) -> None:
        self.line.cut = False
        until(self.ctx.deliver)
        self.ctx.close()


def texts(db: Database, task: Task) -> list[str]:
    rows = select(Row.text).where(Row.stage_id == task.claimed.stage_id).order_by(Row.attempt, Row.sequence)
    with db.read() as session:
        return list(session.scalars(rows))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(steps=STEPS)
def test_outages_and_crashes_leave_no_trace(db: Database, claim: Claim, steps: list[Step]) -> None:
    stage = Stage(db, claim)
    disturbed = 0
    while stage.done < len(steps):
        step = steps[stage.done]
        stage.work(step)
        if disturbed < stage.done:  # each step befalls the stage once, so that it ends
            disturbed = stage.done
            stage.befall(step)
    stage.end()

    run_id, stage_id = stage.task.claimed.run_id, stage.task.claimed.stage_id
    assert texts(db, stage.task) == [f"{at}.{n}" for at, step in enumerate(steps, 1) for n in range(step.samples)]
    with db.read() as session:
        curve = metrics.curve(session, run_id, "loss")
        made = {one.step: (one.mean, one.items) for one in evaluations.of_run(session, run_id)}
        rows = checkpoints.of_stage(session, stage_id)
        scores = {(one.text, one.score, str(one.data)) for one in samples.of_run(session, run_id, limit=1000)}
    assert [(point.step, point.value) for point in curve.points] == [(at, at / 7) for at in range(1, len(steps) + 1)]
    assert made == {at: ((at + 0.5) / 2, [[0, [at, 0.5]]]) for at, step in enumerate(steps, 1) if step.evaluation}
    assert scores == {
        (f"{at}.{n}", n / 3, f"{{'n': [{n}]}}") for at, step in enumerate(steps, 1) for n in range(step.samples)
    }
    written = [at for at, step in enumerate(steps, 1) if step.checkpoint]
    assert [row.step for row in rows][-1:] == written[-1:]
    for row in rows:
        assert (Path(row.uri) / MANIFEST).is_file()
    left_behind.deliver_all(stage.spool, db)
    spools = [folder.name for folder in stage.spool.iterdir() if folder.name.startswith(stage_id.hex)]
    # What the attempt before the last left elsewhere is kept until the last one is over, and then dropped.
    assert spools in ([], [f"{stage_id.hex}-{stage.task.claimed.number - 1}"])


def begun(claim: Claim, db: Database, *, after: Task | None = None, line: Line | None = None) -> tuple[Task, Any, Line]:
    task = claim(after=after)
    ctx = EngineContext(task, no_functions, threading.Event(), retry_s=0.005)
    vars(ctx)["_db"] = line = line or Line(db.url)
    return task, ctx, line


def through_an_outage(claim: Claim, db: Database) -> tuple[Task, Any, Line]:
    """An attempt with a recorded checkpoint of step 1 and one of step 2 that waits on the disk, with all before it."""
    task, ctx, line = begun(claim, db)
    ctx.log(1, loss=1.0)
    ctx.sample(Sample(1, "1"))
    ctx.checkpoint(1, {"done": 1})
    until(ctx.deliver)
    line.cut = True
    ctx.log(2, loss=2.0)
    ctx.sample(Sample(2, "2"))
    ctx.checkpoint(2, {"done": 2})
    ctx.sample(Sample(3, "3"))
    assert not ctx.deliver()
    return task, ctx, line


def test_a_stage_that_is_through_during_an_outage_leaves_its_reports_to_its_supervisor(
    db: Database, claim: Claim
) -> None:
    task, ctx, _ = through_an_outage(claim, db)
    ctx.close()
    left_behind.deliver_for(task.settings.spool, db, task.claimed)

    assert texts(db, task) == ["1", "2", "3"]
    with db.read() as session:
        assert [row.step for row in checkpoints.of_stage(session, task.claimed.stage_id)] == [1, 2]
        assert [p.value for p in metrics.curve(session, task.claimed.run_id, "loss").points] == [1.0, 2.0]
    assert list(task.settings.spool.iterdir()) == []


def test_the_next_attempt_takes_over_what_the_one_before_left(db: Database, claim: Claim) -> None:
    task, ctx, _ = through_an_outage(claim, db)
    ctx.close()
    second, ctx, _ = begun(claim, db, after=task)
    assert second.claimed.resume is not None
    assert second.claimed.resume.step == 1
    restored = ctx.restore()
    assert restored.step == 2
    assert ctx.restore().step == 2  # asked again, it says the same
    ctx.sample(Sample(3, "3 again"))
    until(ctx.deliver)
    ctx.close()
    assert texts(db, task) == ["1", "2", "3 again"]


@pytest.mark.parametrize("damage", ["a file is gone", "a byte has changed", "it is gone", "it is another stage's"])
def test_a_checkpoint_that_does_not_prove_whole_is_not_used(db: Database, claim: Claim, damage: str) -> None:
    task, ctx, _ = through_an_outage(claim, db)
    ctx.close()
    folder = task.checkpoints / "attempt-1" / "step-2"
    match damage:
        case "a file is gone":
            (folder / "state.safetensors").unlink()
        case "a byte has changed":
            (folder / "state.json").write_text((folder / "state.json").read_text().replace("2", "7"))
        case "it is gone":
            shutil.rmtree(folder)
        case _:
            other = folder.parents[1].with_name("train-00000000") / "attempt-1" / "step-2"
            shutil.copytree(folder, other)
            (reports,) = task.settings.spool.glob("*/reports.jsonl")
            reports.write_text(reports.read_text().replace(str(folder), str(other)))
    _, ctx, _ = begun(claim, db, after=task)
    assert ctx.restore().step == 1
    ctx.sample(Sample(2, "2 again"))
    until(ctx.deliver)
    ctx.close()
    assert texts(db, task) == ["1", "2 again"]


def test_what_a_newer_attempt_reports_again_is_not_delivered_too(db: Database, claim: Claim) -> None:
    task, ctx, _ = through_an_outage(claim, db)
    ctx.close()
    hidden = task.settings.home / "elsewhere"
    task.settings.spool.rename(hidden)
    second, ctx, _ = begun(claim, db, after=task)
    assert ctx.restore().step == 1
    ctx.log(2, loss=20.0)
    ctx.sample(Sample(2, "2 again"))
    ctx.checkpoint(2, {"done": 2})
    until(ctx.deliver)
    ctx.close()

    with pytest.raises(StaleAttempt):
        left_behind.deliver_for(hidden, db, task.claimed)
    left_behind.deliver_all(hidden, db)
    assert len(list(hidden.iterdir())) == 1  # the attempt after it runs, and might be about to take it over
    claim(after=second)
    left_behind.deliver_all(hidden, db)
    assert list(hidden.iterdir()) == []
    assert texts(db, task) == ["1", "2 again"]
    with db.read() as session:
        assert [p.value for p in metrics.curve(session, task.claimed.run_id, "loss").points] == [1.0, 20.0]


def test_a_living_attempts_spool_is_nobody_elses(db: Database, claim: Claim) -> None:
    task, ctx, line = through_an_outage(claim, db)
    assert left_behind.deliver_all(task.settings.spool, db) == 0
    assert texts(db, task) == ["1"]
    line.cut = False
    until(ctx.deliver)
    ctx.close()


def test_an_attempt_that_begins_anew_drops_what_the_one_before_left(db: Database, claim: Claim) -> None:
    task, ctx, _ = through_an_outage(claim, db)
    ctx.close()
    _, ctx, _ = begun(claim, db, after=task)
    ctx.sample(Sample(1, "1 again"))
    until(ctx.deliver)
    ctx.close()
    assert texts(db, task) == ["1 again"]
    assert list(task.settings.spool.iterdir()) == []


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_a_store_that_another_process_holds_locked_keeps_nobody_waiting(
    db: Database, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_S", 0.02)
    task = claim()
    ctx = EngineContext(task, no_functions, threading.Event(), retry_s=0.005)
    file = connection.sqlite_file(db.url)
    assert file is not None
    with closing(sqlite3.connect(file, isolation_level=None)) as another:
        another.execute("BEGIN IMMEDIATE")
        for step in range(1, 4):
            ctx.log(step, loss=float(step))
            ctx.sample(Sample(step, f"{step}"))
            ctx.checkpoint(step, {"done": step})
        assert not ctx.deliver()
        another.execute("ROLLBACK")
    until(ctx.deliver)
    ctx.close()
    assert texts(db, task) == ["1", "2", "3"]
    with db.read() as session:
        assert [row.step for row in checkpoints.of_stage(session, task.claimed.stage_id)][-1] == 3
        assert [p.value for p in metrics.curve(session, task.claimed.run_id, "loss").points] == [1.0, 2.0, 3.0]


def test_during_an_outage_retention_keeps_what_it_would_keep(db: Database, claim: Claim) -> None:
    task, ctx, line = begun(claim, db)
    ctx.checkpoint(1, {"done": 1})
    until(ctx.deliver)
    line.cut = True
    for step in range(2, 9):
        ctx.checkpoint(step, {"done": step}, labels=("latest", "best") if step == 4 else ("latest",))
        assert not ctx.deliver()
    tries = line.tries
    until(lambda: line.tries >= tries + 2)  # a whole try, and the tidying after it
    kept = sorted(path.name for path in task.checkpoints.glob("attempt-1/step-*"))
    assert kept == ["step-1", "step-2", "step-4", "step-7", "step-8"]
    line.cut = False
    until(ctx.deliver)
    with db.read() as session:
        rows = [(row.step, row.labels) for row in checkpoints.of_stage(session, task.claimed.stage_id)]
    assert rows == [(4, ["best"]), (7, []), (8, ["latest"])]
    assert sorted(path.name for path in task.checkpoints.glob("attempt-1/step-*")) == ["step-4", "step-7", "step-8"]
    ctx.close()


def test_where_neither_takes_metrics_the_stage_ends_before_its_memory_does(
    db: Database, claim: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_context, "MOST_LOGGED", 50)
    task, ctx, line = begun(claim, db)
    line.cut = True
    logged = 0

    def log_many() -> None:
        nonlocal logged
        while logged < 10_000:
            ctx.log(logged, loss=float(logged))
            logged += 1

    with no_file_longer_than(1), pytest.raises(DiskError, match="spool"):
        log_many()
    assert 50 <= logged < 10_000
    line.cut = False
    until(ctx.deliver)
    ctx.close()
    with db.read() as session:
        points = metrics.curve(session, task.claimed.run_id, "loss", buckets=10_000).points
    assert [point.value for point in points] == [float(at) for at in range(logged)]


def test_what_the_store_refuses_is_set_aside_for_a_person(db: Database, claim: Claim) -> None:
    task, ctx, _ = through_an_outage(claim, db)
    ctx.close()
    (reports,) = task.settings.spool.glob("*/reports.jsonl")
    lines = reports.read_bytes().split(b"\n")
    reports.write_bytes(b"\n".join([b"#" * len(lines[0]), *lines[1:]]))
    left_behind.deliver_for(task.settings.spool, db, task.claimed)
    (folder,) = task.settings.spool.iterdir()
    assert folder.name.endswith(".refused")
    assert left_behind.deliver_all(task.settings.spool, db) == 0
