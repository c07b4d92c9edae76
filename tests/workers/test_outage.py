"""The database goes down under a worker: a private server is stopped, killed, and started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from engine.clock import utc_now
from engine.errors import Unreachable
from engine.runtime.task import Task, written
from engine.settings import Settings
from engine.store import artifacts, checkpoints, evaluations, metrics, samples, stages
from engine.store.processes import process_started
from engine.store.schema import upgrade
from engine.store.session import Database, open_database
from engine.store.stages import Outcome
from engine.store.tables import Attempt, Run, RunId, StageId
from tests.acceptance.lab import Lab
from tests.faults.servers import Postgres
from tests.workers.conftest import STAGES
from tests.workers.test_supervisor import Submit, Supervision, expected_total, reached, status
from workers.housekeeping import Housekeeping
from workers.supervisor import Deps, supervise

pytestmark = pytest.mark.skipif(Postgres.absent() is not None, reason=str(Postgres.absent()))
STEPS, PAUSE, AGAIN = 9, 5, 8


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        upgrade(server.url)
        yield server


@pytest.fixture
def db(server: Postgres) -> Iterator[Database]:
    database = open_database(server.url)
    yield database
    database.close()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def lab(settings: Settings, gate: Path, server: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """An installation on the server, for workers that are processes of their own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(STAGES), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("RLX_PRELOAD", "")
    lab = Lab(replace(settings, database_url=server.url), gate)
    yield lab
    for worker in lab.workers:
        worker.kill()
        worker.wait()
    lab.db.close()


Until = Callable[..., object]
End = Callable[[Postgres], None]


def outcomes(settings: Settings) -> list[Outcome]:
    """What ended attempts said last."""
    said = [Task.read(path).read_outcome() for path in written(settings)]
    return [outcome for outcome in said if outcome is not None]


def ended(db: Database, run: Run, stage_id: StageId) -> list[Attempt]:
    """The attempts at a counting stage, once its reports are seen to be those of an undisturbed one."""
    with db.read() as session:
        (artifact,) = artifacts.of_run(session, RunId(run.id)).values()
        texts = [one.text for one in samples.of_run(session, RunId(run.id), limit=100)]
        curve = metrics.curve(session, RunId(run.id), "total")
        made = [one.step for one in evaluations.of_run(session, RunId(run.id))]
        rows = checkpoints.of_stage(session, stage_id)
        found = stages.attempts(session, stage_id)
    assert float(Path(artifact.uri, "total.txt").read_text()) == expected_total(seed=3, steps=STEPS)
    assert sorted(texts) == sorted(
        ["after 0", *(f"{when} {step}" for when in ("before", "after") for step in range(1, STEPS + 1))]
    )
    assert [point.step for point in curve.points] == list(range(1, STEPS + 1))
    assert made == [STEPS // 2]
    assert rows[-1].step == STEPS
    return found


@pytest.mark.parametrize("end", [Postgres.stop, Postgres.kill])
def test_a_stage_goes_on_through_an_outage_and_nothing_is_done_twice(
    db: Database,
    deps: Deps,
    submit: Submit,
    gate: Path,
    until: Until,
    server: Postgres,
    end: Callable[[Postgres], None],
) -> None:
    run, stage_id = submit("count", steps=STEPS, pause_at=PAUSE, gate=str(gate))
    supervision = Supervision(stage_id, deps)
    reached(gate, until)
    end(server)
    gate.touch()
    # It ends while the database is away: its process leaves, its artifact is stored, its last reports are on the disk.
    until(lambda: list((deps.settings.home / "artifacts").glob("*/*/total.txt")))
    until(lambda: outcomes(deps.settings))
    assert list(deps.settings.spool.glob("*/reports.jsonl"))
    server.start()
    supervision.join()

    assert status(db, run) == "succeeded"
    assert [attempt.status for attempt in ended(db, run, stage_id)] == ["succeeded"]
    assert list(deps.settings.spool.iterdir()) == []


def test_a_stage_killed_in_an_outage_goes_on_from_a_checkpoint_that_only_the_disk_knew(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Until, server: Postgres
) -> None:
    run, stage_id = submit("count", steps=STEPS, pause_at=PAUSE, pause_again_at=AGAIN, gate=str(gate))
    supervision = Supervision(stage_id, deps)
    (pid,) = reached(gate, until)
    server.kill()
    gate.touch()
    until(lambda: spooled(deps.settings, AGAIN))
    os.kill(pid, signal.SIGKILL)
    gate.with_suffix(".again").touch()
    server.start()
    supervision.join()

    assert supervise(stage_id, ("slot:0",), deps)
    first, second = ended(db, run, stage_id)
    assert (first.status, first.cause, second.status) == ("failed", "lost", "succeeded")
    assert f"counting from {AGAIN + 1}" in second.log_tail


def test_what_a_dead_worker_left_is_delivered_by_the_next_on_its_host(
    db: Database, lab: Lab, gate: Path, until: Until, server: Postgres
) -> None:
    stage = lab.count()
    run = lab.submit(replace(stage, extra={**stage.extra, "pause_again_at": AGAIN}))
    worker = lab.worker(lease_s=2)
    pid = lab.paused()
    server.kill()
    gate.touch()
    until(lambda: spooled(lab.settings, AGAIN))
    worker.kill()
    worker.wait()
    os.kill(pid, signal.SIGKILL)
    until(lambda: process_started(pid) is None)
    gate.with_suffix(".again").touch()
    server.start()
    lab.worker(lease_s=2)

    assert lab.ended(run) == "succeeded"
    first, second = ended(db, run, lab.stages(run)["count"].id)
    assert (first.status, second.status) == ("lost", "succeeded")
    assert f"counting from {AGAIN + 1}" in second.log_tail


def test_an_outcome_that_a_dead_worker_kept_waiting_is_recorded_by_the_next(
    db: Database, lab: Lab, gate: Path, until: Until, server: Postgres
) -> None:
    run = lab.submit(lab.count())
    worker = lab.worker()
    pid = lab.paused()
    server.kill()
    gate.touch()
    until(lambda: outcomes(lab.settings))
    until(lambda: process_started(pid) is None)
    worker.kill()
    worker.wait()
    server.start()
    lab.worker()

    assert lab.ended(run) == "succeeded"
    (attempt,) = ended(db, run, lab.stages(run)["count"].id)
    assert attempt.status == "succeeded"
    assert "counting from 1" in attempt.log_tail
    until(lambda: not list(lab.settings.work.iterdir()))
    until(lambda: not list(lab.settings.spool.iterdir()))


class Shifted:
    """The time, and some more."""

    def __init__(self) -> None:
        self.more = timedelta(0)

    def __call__(self) -> datetime:
        return utc_now() + self.more


def test_leases_that_could_not_be_renewed_for_an_hour_are_renewed_first(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Until, server: Postgres
) -> None:
    now = Shifted()
    run, stage_id = submit("count", steps=STEPS, pause_at=PAUSE, gate=str(gate))
    supervision = Supervision(stage_id, replace(deps, now=now))
    reached(gate, until)
    server.kill()
    now.more = timedelta(hours=1)
    server.start()
    keeper = Housekeeping(db, "me", lambda message: None, lambda: None, now, lease_s=60)
    lost = []

    def renewed() -> bool:
        with suppress(Unreachable):  # a connection of before the outage
            lost.append(keeper.sweep())
            with db.read() as session:
                return (stages.attempts(session, stage_id)[-1].lease_expires_at or now()) > now()
        return False

    until(renewed)
    gate.touch()
    supervision.join()
    assert sum(lost) == 0
    assert [attempt.status for attempt in ended(db, run, stage_id)] == ["succeeded"]


def spooled(settings: Settings, step: int) -> bool:
    """Whether the record of that checkpoint waits on the disk."""
    return any(f'["checkpoint",{{"step":{step},' in file.read_text() for file in settings.spool.glob("*/reports.jsonl"))
