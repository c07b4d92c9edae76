"""Stages that fail in ways of their own: each gets its cause, its log, its stacks, and its time accounted for."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import DiskError
from engine.runtime import stopwatch
from engine.runtime.task import Task
from engine.store import checkpoints, spent, stages
from engine.store.processes import process_started
from engine.store.session import Database
from engine.store.tables import Attempt, Run, StageId
from workers.children import Children, NoChild
from workers.supervisor import Deps, Times
from workers.supervisor import supervise as supervise_here
from workers.vigil import Vigil

Submit = Callable[..., tuple[Run, StageId]]
Until = Callable[..., object]
sqlite_alone = pytest.mark.parametrize("db", ["sqlite"], indirect=True)


def supervise(stage_id: StageId, deps: Deps) -> Attempt:
    """Run the stage's next attempt to its end."""
    assert supervise_here(stage_id, ("slot:0",), deps)
    with deps.db.read() as session:
        return stages.attempts(session, stage_id)[-1]


def impatient(deps: Deps) -> Deps:
    return replace(deps, times=Times(poll_s=0.05, heartbeat_s=0.1, grace_s=0.2))


def test_a_stage_without_a_sign_of_life_is_dumped_and_ended(
    deps: Deps, submit: Submit, gate: Path, clock_from_the_gate: Callable[[], float]
) -> None:
    _, stage_id = submit("stuck", stall_timeout_s=1.0, gate=str(gate))
    attempt = supervise(stage_id, replace(impatient(deps), clock=clock_from_the_gate))
    pid, other, twin = map(int, gate.with_suffix(".reached").read_text().split())

    assert (attempt.status, attempt.cause) == ("failed", "hang")
    assert "no sign of life for 0:00:01" in (attempt.error or "")
    assert "hardware.stall_timeout" in attempt.detail["next"]
    found = {entry["pid"]: entry for entry in attempt.detail["stacks"]}
    assert next(iter(found)) == pid
    assert set(found) == {pid, other, twin}
    assert "in _wait_for_nobody" in found[pid]["stacks"]
    assert "in _wait_as_a_twin" in found[twin]["stacks"]
    assert found[other]["command"] == "sleep 600"
    assert "waits in" in found[other]["threads"][0]
    assert found[other]["stacks"] == ""
    for words in ("in _wait_for_nobody", "in _wait_as_a_twin", f"stacks of process {other}: sleep 600"):
        assert words in Path(attempt.log_path or "").read_text()
    assert [process_started(each) for each in (pid, other, twin)] == [None, None, None]


@sqlite_alone
def test_a_stage_that_shows_signs_of_life_is_left_alone(db: Database, deps: Deps, submit: Submit, gate: Path) -> None:
    """Many times longer than the limit in all, with a sign of life now and then."""
    _, stage_id = submit("count", stall_timeout_s=60, steps=20, gate=str(gate))
    assert supervise(stage_id, impatient(deps)).status == "succeeded"


class Ticks:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@sqlite_alone
def test_silence_is_counted_as_long_as_somebody_listens(deps: Deps, submit: Submit) -> None:
    task = _claimed(deps, submit, stall_timeout_s=20)
    ticks = Ticks()
    watch, vigil = stopwatch.Stopwatch(task.path), Vigil(task, ticks)
    for step in range(30):  # a sign of life between any two looks
        ticks.time += 4
        watch.beat()
        assert not vigil.stalls(), step
    ticks.time += 10_000  # we were frozen together with the stage: nobody knows what it would have said
    assert not vigil.stalls()
    looks = 0
    while not vigil.stalls():
        ticks.time += 2
        looks += 1
    assert 7 <= looks <= 10  # 5 s for the long gap, then 2 s each


@sqlite_alone
def test_no_limit_means_none(deps: Deps, submit: Submit) -> None:
    task = _claimed(deps, submit, stall_timeout_s=None)
    ticks = Ticks()
    vigil = Vigil(task, ticks)
    for _ in range(1000):
        ticks.time += 5
        assert not vigil.stalls()


def _claimed(deps: Deps, submit: Submit, **options: float | None) -> Task:
    _, stage_id = submit("noop", **options)
    with deps.db.write() as session:
        claimed = stages.claim(session, stage_id, worker=deps.worker, devices=(), now=deps.now(), lease_s=60)
    assert claimed is not None
    task = Task(claimed, deps.settings)
    task.write()
    return task


@sqlite_alone
def test_a_full_disk_under_a_stage(deps: Deps, submit: Submit) -> None:
    attempt = supervise(submit("fill_the_disk")[1], deps)
    assert (attempt.status, attempt.cause) == ("failed", "disk")
    assert "No space left on device" in attempt.log_tail


@sqlite_alone
@pytest.mark.parametrize("folder", ["work", "logs"])
def test_a_full_disk_before_a_stage_began(
    deps: Deps, submit: Submit, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder leads to a device that is always full."""
    _, stage_id = submit("noop")
    opened = Path.open

    def full(self: Path, *args: object, **options: object) -> object:
        inside = self.is_relative_to(deps.settings.home / folder) and "r" not in (args[:1] or ("r",))[0]
        return opened(Path("/dev/full") if inside else self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    attempt = supervise(stage_id, deps)
    assert (attempt.status, attempt.cause) == ("failed", "disk")
    assert attempt.detail["type"] == "OSError"


@sqlite_alone
def test_a_database_whose_disk_is_full_is_waited_for(
    deps: Deps, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: dict[str, int] = {}

    def full_at_first(name: str) -> None:
        real = getattr(stages, name)

        def write(*args: object, **options: object) -> object:
            refused[name] = refused.get(name, 0) + 1
            if refused[name] <= 2:
                raise DiskError("the disk is full: database or disk is full")
            return real(*args, **options)

        monkeypatch.setattr(stages, name, write)

    for name in ("start", "heartbeat", "finish"):
        full_at_first(name)
    assert supervise(submit("spend")[1], deps).status == "succeeded"
    assert refused["finish"] == 3


@sqlite_alone
def test_a_process_that_ends_behind_our_back_is_judged_by_its_last_words(deps: Deps, submit: Submit) -> None:
    attempt = supervise(submit("exit_early")[1], deps)
    assert (attempt.status, attempt.cause) == ("failed", "oom")
    assert "status 3" in (attempt.error or "")


@sqlite_alone
def test_a_stage_that_no_process_could_be_made_for_has_a_log(
    deps: Deps, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NoChild("no process could be made: Resource temporarily unavailable")

    monkeypatch.setattr(Children, "spawn", refuse)
    attempt = supervise(submit("noop")[1], deps)
    assert (attempt.status, attempt.cause) == ("failed", "internal")
    assert "stage noop, attempt 1" in attempt.log_tail
    assert "Resource temporarily unavailable" in attempt.log_tail


def test_time_is_told_apart(deps: Deps, submit: Submit) -> None:
    attempt = supervise(submit("spend")[1], deps)
    times = spent.of_attempt(attempt)
    assert attempt.finished_at is not None
    assert min(times["functions"], times["training"]) >= 0.02
    assert times["saving"] > 0
    assert "lost" not in times
    assert sum(times.values()) == pytest.approx((attempt.finished_at - attempt.started_at).total_seconds(), abs=0.01)


def test_a_killed_stage_loses_what_came_after_its_checkpoint(
    db: Database, deps: Deps, submit: Submit, gate: Path, until: Until
) -> None:
    _, stage_id = submit("spend", die=True, gate=str(gate))
    thread = threading.Thread(target=supervise_here, args=(stage_id, ("slot:0",), impatient(deps)))
    thread.start()
    until(lambda: gate.with_suffix(".reached").exists() and gate.with_suffix(".reached").read_text())
    until(lambda: _recorded(db, stage_id))
    first = _running_times(db, stage_id).get("training", 0.0)
    seen = until(lambda: (now := _running_times(db, stage_id).get("training", 0.0)) > first + 0.1 and now)
    assert isinstance(seen, float)  # told by heartbeats meanwhile
    os.kill(int(gate.with_suffix(".reached").read_text()), signal.SIGKILL)
    thread.join(120)
    assert not thread.is_alive()
    with db.read() as session:
        times = spent.of_attempt(stages.attempts(session, stage_id)[-1])
    assert 0.02 <= times["training"] < seen
    assert times["lost"] >= seen - times["training"] - 0.01


def _recorded(db: Database, stage_id: StageId) -> int:
    with db.read() as session:
        return len(checkpoints.of_stage(session, stage_id))


def _running_times(db: Database, stage_id: StageId) -> dict[str, float]:
    with db.read() as session:
        return spent.of_attempt(stages.attempts(session, stage_id)[-1])
