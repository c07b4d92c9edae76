"""Services between stages: handed from one to the next of the same kind, and ended when nobody comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DataError
from engine.runtime import kept
from engine.runtime.kept import Owner
from engine.runtime.services import Around, running
from engine.store.processes import process_started
from tests.runtime.test_services import alive, command, get, kill, starts
from tests.waiting import until

STAGE = """
import sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from engine.runtime.kept import Owner
from engine.runtime.services import Around, running
from tests.runtime.test_services import command
place = Path({place!r})
services = {{"odd": command(place, "deaf", keep=60.0)}}
owner = Owner(Path({folder!r}), "a", {me!r}, services)
with running(services, {{}}, Around(lambda n: place / "log", owner=owner), threading.Event()):
    (place / "up").touch()
    threading.Event().wait()
"""
Run = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ("long" * 30) / "run"


@pytest.fixture
def run(tmp_path: Path, folder: Path) -> Iterator[Run]:
    """`with run(keep=60) as service:` is a stage beside a service that may be kept."""

    def run(
        *vices: str,
        keep: float | None = 60.0,
        of_run: str = "a",
        gpus: tuple[str, ...] = (),
        worker: int = 0,
        **more: Any,
    ) -> Any:
        definition = command(tmp_path / "odd", *vices, keep=keep, gpus=len(gpus), **more)
        pid = worker or os.getpid()
        owner = Owner(folder, of_run, (pid, process_started(pid) or 0.0), {"odd": definition})
        around = Around(lambda name: tmp_path / f"{name}.log", gpus, owner=owner)
        return running({"odd": definition}, {}, around, threading.Event())

    yield run
    for found in kept.on_this_host(folder):
        kept.end(found)
    assert not [pid for pid in starts(tmp_path / "odd") if alive(pid)]
    assert list(folder.glob("*")) == []


def test_the_next_stage_gets_the_running_one(run: Run, tmp_path: Path) -> None:
    with run() as first:
        pid = get(first["odd"], "/pid")
    assert alive(pid)
    with run() as second:
        assert (get(second["odd"], "/pid"), second["odd"]) == (pid, first["odd"])
    with run() as third:
        assert get(third["odd"], "/pid") == pid
    assert starts(tmp_path / "odd") == [pid]


@pytest.mark.parametrize(
    "other",
    [{"of_run": "b"}, {"env": {"A": "1"}}, {"gpus": ("1",)}, {"keep": None}],
    ids=["another run", "another definition", "other GPUs", "not to be kept"],
)
def test_no_other_stage_gets_it(run: Run, other: dict[str, Any]) -> None:
    with run(gpus=("0",)) as first:
        pid = get(first["odd"], "/pid")
    with run(**{"gpus": ("0",)} | other) as second:
        assert get(second["odd"], "/pid") != pid
    assert alive(pid)


def test_one_at_a_time(run: Run) -> None:
    with run() as first:
        pid = get(first["odd"], "/pid")
    with run() as second, run() as third:
        assert {get(second["odd"], "/pid"), get(third["odd"], "/pid")} > {pid}


def test_nobody_came_in_time(run: Run, tmp_path: Path, folder: Path) -> None:
    with run("children", keep=0.3):
        pids = [*starts(tmp_path / "odd"), *map(int, (tmp_path / "odd" / "children").read_text().split())]
    until(lambda: not any(alive(pid) for pid in pids), "it ends with all that it started", 30)
    until(lambda: not list(folder.glob("*")), "its door, too", 30)


def test_it_ends_with_its_worker(run: Run, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as worker:
        with run("deaf", worker=worker.pid):
            (pid,) = starts(tmp_path / "odd")
        assert alive(pid)
        worker.kill()
    until(lambda: not alive(pid), "killed at once", 30)


def test_it_is_not_kept_for_a_worker_that_has_died_already(run: Run, tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as worker:
        with run("deaf", worker=worker.pid):
            (pid,) = starts(tmp_path / "odd")
            worker.kill()
            worker.wait()
        until(lambda: not alive(pid), "killed at once", 30)


def test_a_stage_that_fails_keeps_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError), run():
        raise DataError("on purpose")
    assert not any(alive(pid) for pid in starts(tmp_path / "odd"))


def test_one_that_dies_while_it_waits_is_started_anew(run: Run, tmp_path: Path, folder: Path) -> None:
    with run() as first:
        address = first["odd"]
    kill(address)
    until(lambda: not list(folder.glob("*")), "its keeper ends", 30)
    with run() as second:
        assert get(second["odd"], "/pid") == starts(tmp_path / "odd")[1]


def test_a_death_in_each_of_two_stages_is_one_in_each(run: Run, tmp_path: Path) -> None:
    for number in (2, 3):
        with run() as services:
            kill(services["odd"])
            until(lambda: len(starts(tmp_path / "odd")) == number and _answers(services["odd"]))  # noqa: B023
    assert len(starts(tmp_path / "odd")) == 3


def test_who_is_told_to_end_is_gone_when_that_returns(run: Run, tmp_path: Path, folder: Path) -> None:
    with run("deaf", "children", gpus=("3", "4")):
        pids = [*starts(tmp_path / "odd"), *map(int, (tmp_path / "odd" / "children").read_text().split())]
    (found,) = kept.on_this_host(folder)
    assert (found.gpus, found.run, found.worker) == ({"3", "4"}, "a", os.getpid())

    kept.end(found)

    assert not any(alive(pid) for pid in pids)
    kept.end(found)  # again does no harm


def test_the_door_of_a_keeper_that_was_killed_is_taken_away(run: Run, tmp_path: Path, folder: Path) -> None:
    with run():
        (pid,) = starts(tmp_path / "odd")
    (found,) = kept.on_this_host(folder)
    os.kill(found.keeper, signal.SIGKILL)
    until(lambda: not alive(pid), "its service ends with it", 30)
    with run() as services:
        assert get(services["odd"], "/pid") != pid


def test_a_stage_that_is_killed_hands_nothing_over(tmp_path: Path, folder: Path) -> None:
    place, me = tmp_path / "odd", (os.getpid(), process_started(os.getpid()))
    tests = str(Path(__file__).parents[2])
    script = STAGE.format(tests=tests, place=str(place), folder=str(folder), me=me)
    stage = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: (place / "up").exists())
    (pid,) = starts(place)
    assert list(kept.on_this_host(folder)) != []

    stage.kill()
    stage.wait()

    until(lambda: not alive(pid) and not list(folder.glob("*")), "all is over", 30)


def _answers(address: Any) -> bool:
    try:
        return bool(get(address, "/pid"))
    except OSError:
        return False
