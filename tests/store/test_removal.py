"""A run removed with all it owns: nothing of it stays, nothing of others goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from engine.errors import NotFound, Refused
from engine.store import checkpoints, removal, runs
from engine.store.metrics import MetricWriter
from engine.store.session import Database
from engine.store.stages import Outcome
from engine.store.tables import METADATA, CacheEntry, Event, Metric, Run, Sample, Series
from tests.store.walk import Clock, Queue, plan

NAMES = tuple(METADATA.tables)
SHARED = {"specs", "workers", "artifacts", "cache_entries", "locks"}


def counts(db: Database) -> dict[str, int]:
    with db.read() as session:
        return {name: session.scalar(select(func.count()).select_from(METADATA.tables[name])) or 0 for name in NAMES}


def trained(queue: Queue, tmp_path: Path, salt: str = "", points: int = 50) -> Run:
    """A run that succeeded, with rows wherever a run may have some."""
    run = queue.submit("a", "b<a", salt=salt)
    queue.finish(queue.claim(run, "a"))
    claimed = queue.claim(run, "b", "slot:0")
    writer = MetricWriter(queue.db, claimed.run_id, claimed.stage_id, claimed.number, tmp_path / "spool")
    for step in range(points):
        writer.log(step, {"loss": 1.0 / (step + 1), "reward": float(step)})
    writer.close()
    with queue.db.write() as session:
        for n in range(points):
            session.execute(
                insert(Sample).values(
                    run_id=run.id, stage_id=claimed.stage_id, attempt=1, sequence=n, step=n, kind="k", split="train",
                    text="t", data={},
                )
            )  # fmt: skip
    queue.finish(claimed)
    return run


def owned(db: Database, run: Run) -> removal.Belongings:
    with db.read() as session:
        return removal.belongings(session, run.handle)


@pytest.mark.parametrize("piece", [7, removal.PIECE])
def test_nothing_of_it_stays_and_nothing_of_others_goes(db: Database, queue: Queue, tmp_path: Path, piece: int) -> None:
    kept = trained(queue, tmp_path, salt="kept")
    before = counts(db)
    run = trained(queue, tmp_path, salt="gone")
    removal.remove(db, owned(db, run), clock=queue.clock, piece=piece)

    after = counts(db)
    events = before.pop("events"), after.pop("events")
    assert events == (events[0], events[0] + 1)  # that it was removed
    shared = {name: (before.pop(name), after.pop(name)) for name in SHARED}
    assert before == after
    assert shared["locks"] == (0, 0)
    with pytest.raises(NotFound), db.read() as session:
        runs.find(session, run.handle)
    assert queue.status(kept) == "succeeded"
    with db.read() as session:
        assert session.scalar(select(Event.message).order_by(Event.id.desc())) == f"{run.handle} was removed"
        assert None in session.scalars(select(CacheEntry.stage_id)).all()


def test_a_live_run_is_refused(db: Database, queue: Queue) -> None:
    run = queue.submit()
    with pytest.raises(Refused, match="rlx cancel"):
        owned(db, run)
    claimed = queue.claim(run)
    queue.finish(claimed, Outcome.stopped())
    queue.stop(run)
    belongings = owned(db, run)
    queue.resume(run)
    with pytest.raises(Refused, match="queued"):
        removal.remove(db, belongings, clock=queue.clock)
    assert queue.status(run) == "queued"


def test_a_run_that_another_began_from_is_refused_until_that_is_gone(db: Database, queue: Queue) -> None:
    run = queue.submit("train")
    claimed = queue.claim(run)
    with db.write() as session:
        checkpoints.record(
            session, run_id=run.id, stage_id=claimed.stage_id, number=1, step=1, labels=["best"], uri="/c/1",
            sha256="0" * 64, size=1, now=queue.clock(),
        )  # fmt: skip
    queue.finish(claimed)
    child = plan("train", name="child", salt="child")
    child = replace(child, stages=(replace(child.stages[0], extra={"model_path": "/c/1/policy"}),))
    with db.write() as session:
        second = runs.submit(session, child, runs.Submission(source="v", resolved={}), now=queue.clock())
    queue.finish(queue.claim(second))
    with pytest.raises(Refused, match="child-1 began from a checkpoint of best-lang-1"):
        owned(db, run)
    removal.remove(db, owned(db, second), clock=queue.clock)
    removal.remove(db, owned(db, run), clock=queue.clock)
    assert counts(db)["runs"] == 0


def test_half_removed_it_cannot_be_resumed_and_removing_again_finishes(
    db: Database, queue: Queue, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    writer = MetricWriter(db, claimed.run_id, claimed.stage_id, claimed.number, tmp_path)
    for step in range(30):
        writer.log(step, {"loss": 1.0})
    writer.close()
    queue.stop(run)
    queue.finish(claimed, Outcome.stopped())
    belongings = owned(db, run)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(removal, "_finish", dies)
    with pytest.raises(KeyboardInterrupt):
        removal.remove(db, belongings, clock=clock, piece=7)
    monkeypatch.undo()
    assert counts(db)["metrics"] == 0
    with pytest.raises(Refused, match="rlx rm"):
        queue.resume(run)
    clock.advance(120)  # whoever removed it is gone for good: what is left may go on
    assert queue.resume(run)
    queue.stop(run)
    removal.remove(db, belongings, clock=clock)
    removal.remove(db, belongings, clock=clock)  # and once more is as good
    assert counts(db)["runs"] == 0


def test_a_new_series_never_meets_the_points_of_a_removed_one(db: Database, queue: Queue, tmp_path: Path) -> None:
    run = trained(queue, tmp_path)
    removal.remove(db, owned(db, run), clock=queue.clock)
    again = trained(queue, tmp_path, salt="again", points=1)
    with db.read() as session:
        series = session.scalars(select(Series.id).where(Series.run_id == again.id)).all()
        assert session.scalar(select(func.count()).where(Metric.series_id.in_(series))) == 2
        assert session.scalar(select(func.count()).select_from(Metric)) == 2
