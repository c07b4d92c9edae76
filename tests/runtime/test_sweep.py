"""What `rlx gc` finds in a home, and that it finds nothing that somebody needs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select

from engine.runtime import leftovers, sweep
from engine.runtime.spool import folder_of
from engine.runtime.sweep import Found
from engine.runtime.task import Task
from engine.settings import Settings
from engine.store import checkpoints, removal
from engine.store.artifact_store import ArtifactStore
from engine.store.metric_spool import MetricSpool
from engine.store.retention import Limits
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import Artifact, Checkpoint, Run
from tests.store.walk import Clock, Queue

DAY = 86_400.0


@pytest.fixture
def queue(db: Database, clock: Clock) -> Queue:
    """Files tell the real time, so the clock begins with it here."""
    clock.time = datetime.now(UTC)  # type: ignore[attr-defined]
    return Queue(db, clock)


@pytest.fixture
def home(settings: Settings, db: Database) -> Settings:
    return replace(settings, database_url=db.url)


def look(queue: Queue, home: Settings, limits: Limits | None = None) -> Found:
    return sweep.look(queue.db, home, limits or Limits(), now=queue.clock(), grace_s=DAY)


def removed(found: Found) -> list[tuple[str, str]]:
    return [(item.kind, item.name) for item in found.items if item.remove()]


def write(path: Path, text: str = "x" * 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def checkpoint(queue: Queue, home: Settings, claimed: Claimed, step: int, *labels: str, record: bool = True) -> Path:
    path = Task(claimed, home).checkpoints / f"attempt-{claimed.number}" / f"step-{step}"
    write(path / "state.json")
    if record:
        with queue.db.write() as session:
            checkpoints.record(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                step=step,
                labels=labels,
                uri=str(path),
                sha256="0" * 64,
                size=10,
                now=queue.clock(),
            )
    return path


def busy(queue: Queue, home: Settings) -> tuple[Run, Claimed]:
    """A run whose second stage runs, with all that it keeps in its home."""
    run = queue.submit("a", "b<a", salt=str(uuid4()))
    first = queue.claim(run, "a")
    out = write(home.work / "draft" / "weights", str(uuid4())).parent
    queue.finish(first, Outcome.succeeded(ArtifactStore(home.artifact_url).put(out, "k")))
    claimed = queue.claim(run, "b", lease_s=1e9)
    task = Task(claimed, home)
    task.write()
    write(task.output_dir / "half", "half")
    write(task.log)
    write(task.checkpoints / "attempt-1" / ".step-2.0a1b2c3d" / "state.json")
    checkpoint(queue, home, claimed, 1, "latest")
    checkpoint(queue, home, claimed, 2, record=False)  # it is about to be recorded
    MetricSpool(spool(home, claimed), claimed.stage_id).append({"loss": {1: (0.5, 0.0)}})
    return run, claimed


def spool(home: Settings, claimed: Claimed) -> Path:
    return folder_of(home.spool, claimed.stage_id, claimed.number)


def files(home: Settings) -> set[Path]:
    return {path for path in home.home.rglob("*") if path.is_file() and not path.name.startswith("rlx.db")}


def test_nothing_of_a_live_run_is_found(queue: Queue, home: Settings) -> None:
    busy(queue, home)
    queue.clock.advance(1000 * DAY)
    assert look(queue, home, Limits(keep=0, older_than_s=0, max_bytes=0)).items == ()


def test_what_is_young_is_left(queue: Queue, home: Settings) -> None:
    _, claimed = busy(queue, home)
    queue.finish(claimed)
    write(home.work / f"{uuid4()}.task")
    write(home.logs / "nobody-1" / "train-1.log")
    queue.clock.advance(DAY / 2)
    assert look(queue, home).items == ()


def test_leftovers_go_and_all_else_stays(queue: Queue, home: Settings) -> None:
    run, claimed = busy(queue, home)
    queue.finish(claimed, Outcome.stopped())
    queue.stop(run)
    (spool(home, claimed) / f"{claimed.stage_id}.metrics").unlink()
    needed = files(home) - {path for path in files(home) if "step-2" in str(path)}
    needed -= {Task(claimed, home).path, *Task(claimed, home).output_dir.rglob("*")}
    unknown = str(uuid4())
    left = {
        write(home.work / unknown / "weights"),
        write(home.work / f"{unknown}.task"),
        write(home.work / f"{unknown}.draft"),
        write(home.checkpoints / "nobody-1" / "train-00000000" / "attempt-1" / "step-1" / "state.json"),
        write(home.checkpoints / run.handle / "train-00000000" / "attempt-1" / "step-1" / "state.json"),
        write(Task(claimed, home).checkpoints / "attempt-1" / ".step-9.gone" / "state.json"),
        write(home.logs / "nobody-1" / "train-1.log"),
        write(home.spool / f"{unknown}-1" / "reports.jsonl"),
        write(spool(home, claimed) / f"{claimed.stage_id}.metrics.delivered", "0"),
        write(home.home / "cache" / "ab" / ("ab" * 32) / "a"),
        write(home.home / "cache" / "incoming-1" / "a"),
        write(Path(home.artifact_url) / "ab" / ("ab" * 32) / "a"),
        write(Path(home.artifact_url) / "incoming-1" / "a"),
    }
    strangers = {write(home.work / "notes.txt"), write(home.spool / "notes.txt"), write(home.home / "README")}
    queue.clock.advance(2 * DAY)
    found = look(queue, home)
    assert files(home) >= left | needed | strangers  # looking changes nothing
    removed(found)
    assert {path for path in files(home) if path.name != ".lock"} == needed | strangers
    assert look(queue, home).items == ()


def test_an_undelivered_spool_is_kept_and_a_delivered_one_is_not(queue: Queue, home: Settings) -> None:
    _, claimed = busy(queue, home)
    queue.finish(claimed)
    queue.clock.advance(2 * DAY)
    assert not [item for item in look(queue, home).items if item.kind == "spool"]
    (spool(home, claimed) / f"{claimed.stage_id}.metrics").unlink()
    write(spool(home, claimed) / f"{claimed.stage_id}.metrics.delivered", "0")
    queue.clock.advance(2 * DAY)
    assert [item.why for item in look(queue, home).items if item.kind == "spool"] == ["delivered"]


def test_a_checkpoint_whose_record_may_be_in_the_spool_is_kept(queue: Queue, home: Settings) -> None:
    _, claimed = busy(queue, home)
    queue.finish(claimed)
    queue.clock.advance(2 * DAY)
    assert not [item for item in look(queue, home).items if item.kind == "checkpoint"]
    (spool(home, claimed) / f"{claimed.stage_id}.metrics").unlink()
    found = [(item.kind, item.name.rpartition("/")[2]) for item in look(queue, home).items]
    found = [(kind, name) for kind, name in found if kind not in ("work", "spool")]
    assert sorted(found) == [("checkpoint", "step-2"), ("draft", ".step-2.0a1b2c3d")]


def test_checkpoints_go_by_the_limits_with_their_files(queue: Queue, home: Settings) -> None:
    run, claimed = busy(queue, home)
    best = checkpoint(queue, home, claimed, 5, "best")
    last = checkpoint(queue, home, claimed, 6, "latest")
    queue.finish(claimed)
    found = look(queue, home, Limits(keep=1))
    assert removed(found) == [("checkpoint", f"{run.handle} b step-1")]
    with queue.db.read() as session:
        assert {row.uri for row in session.scalars(select(Checkpoint))} == {str(best), str(last)}
    assert best.is_dir()
    assert last.is_dir()
    assert not list(best.parent.parent.rglob("*step-1*"))
    assert removed(found) == []  # once more: it is gone


def test_a_checkpoint_on_another_host_is_left_to_that_host(queue: Queue, home: Settings) -> None:
    _, claimed = busy(queue, home)
    path = checkpoint(queue, home, claimed, 1)
    queue.finish(claimed)
    queue.clock.advance(10)
    path.rename(path.with_name("away"))  # the worker is registered as of host `elsewhere`
    found = look(queue, home, Limits(older_than_s=0))
    assert found.items == ()
    assert "elsewhere" in found.notes[0]


def test_bytes_that_are_needed_are_told(queue: Queue, home: Settings) -> None:
    busy(queue, home)
    assert "take 10 bytes" in look(queue, home, Limits(max_bytes=5)).notes[0]


def test_where_the_database_knows_no_run_files_are_left_alone(queue: Queue, home: Settings) -> None:
    write(Path(home.artifact_url) / "ab" / ("ab" * 32) / "a")
    write(home.work / f"{uuid4()}.task")
    queue.clock.advance(2 * DAY)
    found = look(queue, home)
    assert found.items == ()
    assert "no run" in found.notes[0]


def test_a_removed_run_leaves_nothing_but_its_artifacts_and_those_go_later(queue: Queue, home: Settings) -> None:
    run, claimed = busy(queue, home)
    queue.finish(claimed, Outcome.stopped())
    queue.stop(run)
    queue.submit("other")
    with queue.db.read() as session:
        owned = removal.belongings(session, run.handle)
        (artifact,) = session.scalars(select(Artifact)).all()
    removal.remove(queue.db, owned, clock=queue.clock)
    leftovers.remove_files(owned, home)
    assert {path.name for path in files(home)} == {"weights"}

    queue.clock.advance(2 * DAY)
    assert removed(look(queue, home)) == [("artifact", artifact.sha256[:12])]
    assert {path.name for path in files(home)} <= {".lock"}


def test_a_gc_that_is_killed_between_sql_and_files_is_finished_by_the_next(queue: Queue, home: Settings) -> None:
    _, claimed = busy(queue, home)
    for step in (5, 6):
        checkpoint(queue, home, claimed, step)
    queue.finish(claimed)
    with queue.db.read() as session:
        rows = {row.step: row.uri for row in session.scalars(select(Checkpoint))}
    (spool(home, claimed) / f"{claimed.stage_id}.metrics").unlink()
    queue.clock.advance(2 * DAY)
    (item, *_) = look(queue, home, Limits(keep=1)).items
    pid = os.fork()
    if pid == 0:
        sweep.put_aside = lambda _: os.kill(os.getpid(), 9)  # type: ignore[assignment]
        try:
            item.remove()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 9
    with queue.db.read() as session:
        left = {row.uri for row in session.scalars(select(Checkpoint))}
    assert set(rows.values()) - left == {rows[1]}
    assert all(Path(uri).is_dir() for uri in left)
    assert Path(rows[1]).is_dir()  # files without a row
    for found in look(queue, home).items:
        found.remove()
    assert not Path(rows[1]).exists()


def test_looking_for_what_may_go_needs_no_torch() -> None:
    line = "import sys, engine.runtime.sweep, engine.cli.collecting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0


def test_a_folder_is_out_of_sight_before_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "step-1" / "state.json").parent
    seen: list[list[str]] = []
    monkeypatch.setattr(sweep.artifact_sweep, "remove", lambda _: seen.append([p.name for p in tmp_path.iterdir()]))
    sweep.put_aside(folder)
    assert seen[-1] == [".step-1.gone"]
