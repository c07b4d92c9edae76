"""Time by activity: spells nest without counting twice, and the page tells the same from outside, even of the dead."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.runtime import stopwatch
from engine.runtime.local import LocalContext
from engine.runtime.stopwatch import Stopwatch, spends, spent
from engine.store.spent import ACTIVITIES


class Ticks:
    """A clock in seconds that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def page(tmp_path: Path, ticks: Ticks) -> Path:
    path = tmp_path / "pulse"
    path.write_bytes(stopwatch.blank(ticks))
    return path


def told(times: dict[str, float]) -> dict[str, float]:
    return {name: seconds for name, seconds in times.items() if seconds}


def test_inner_spells_are_not_counted_twice(page: Path, ticks: Ticks) -> None:
    watch = Stopwatch(page, ticks)
    ticks.advance(3)  # start-up: until the stage first does something
    with watch.spent("generation"):
        ticks.advance(10)
        with watch.spent("functions"):
            ticks.advance(2)
        ticks.advance(1)
    ticks.advance(4)
    with watch.spent("training"):
        ticks.advance(5)
    expected = {"start_up": 3, "generation": 11, "functions": 2, "other": 4, "training": 5}
    assert told(watch.read().total) == expected
    found = stopwatch.look(page, ticks)
    assert found is not None
    assert told(found.total) == expected


def test_start_up_lasts_until_the_first_report_whatever_it_waits_for(page: Path, ticks: Ticks) -> None:
    watch = Stopwatch(page, ticks)
    with watch.spent("waiting"):
        ticks.advance(7)
    with watch.spent("functions"):
        ticks.advance(1)
    ticks.advance(2)
    watch.beat()
    ticks.advance(5)
    assert told(watch.read().total) == {"start_up": 2, "waiting": 7, "functions": 1, "other": 5}


def test_a_report_within_a_first_spell_ends_the_start_up_beneath_it(page: Path, ticks: Ticks) -> None:
    watch = Stopwatch(page, ticks)
    with watch.spent("waiting"):
        ticks.advance(1)
        watch.beat()
        ticks.advance(1)
    ticks.advance(1)
    assert told(watch.read().total) == {"waiting": 2, "other": 1}


def test_an_error_ends_its_spell(page: Path, ticks: Ticks) -> None:
    watch = Stopwatch(page, ticks)

    def fail() -> None:
        ticks.advance(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), watch.spent("training"):
        fail()
    ticks.advance(1)
    assert told(watch.read().total) == {"training": 1, "other": 1}


@given(st.lists(st.tuples(st.sampled_from(ACTIVITIES), st.integers(0, 3), st.integers(1, 9)), max_size=30))
def test_every_second_is_counted_once(spells: list[tuple[str, int, int]]) -> None:
    ticks = Ticks()
    watch, open_spells = Stopwatch(clock=ticks), []
    for activity, closing, seconds in spells:
        for _ in range(min(closing, len(open_spells))):
            open_spells.pop().__exit__(None, None, None)
        open_spells.append(watch.spent(activity))
        open_spells[-1].__enter__()
        ticks.advance(seconds)
    assert sum(watch.read().total.values()) == pytest.approx(ticks() - 1000)


def test_what_is_safe_is_what_had_been_read_at_the_checkpoint(page: Path, ticks: Ticks) -> None:
    watch = Stopwatch(page, ticks)
    watch.beat()
    ticks.advance(8)
    at_checkpoint = watch.read()
    ticks.advance(5)
    watch.keep(at_checkpoint)
    found = stopwatch.look(page, ticks)
    assert found is not None
    assert (told(found.kept), told(found.total)) == ({"other": 8}, {"other": 13})


def test_signs_of_life(page: Path, ticks: Ticks) -> None:
    watch = Stopwatch(page, ticks)

    def beats() -> int:
        found = stopwatch.look(page, ticks)
        assert found is not None
        return found.beats

    for activity in ("generation", "training", "functions"):
        before = beats()
        with watch.spent(activity):
            assert beats() == before + 1
    before = beats()
    for activity in ("waiting", "saving", "other"):
        with watch.spent(activity):
            ticks.advance(100)
    assert beats() == before
    thread = threading.Thread(target=watch.beat)
    thread.start()
    thread.join()
    assert beats() == before + 1


def test_other_threads_and_forked_processes_count_nothing(page: Path, ticks: Ticks) -> None:
    watch = Stopwatch(page, ticks)
    watch.start()

    def work() -> None:
        with watch.spent("training"), spent("generation"):
            ticks.advance(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    child = multiprocessing.get_context("fork").Process(target=_spend)
    child.start()
    child.join()
    watch.stop()
    assert child.exitcode == 0
    assert told(watch.read().total) == {"start_up": 1}
    assert watch.read().beats == 0


def _spend() -> None:
    with spent("training"):
        pass


def test_without_a_stage_nothing_is_counted_and_nothing_fails() -> None:
    @spends("generation")
    def double(number: int) -> int:
        return 2 * number

    assert double(3) == 6
    assert double.__name__ == "double"


def test_an_activity_misspelt_is_an_error() -> None:
    with pytest.raises(KeyError):
        Stopwatch().spent("trainning")


def test_the_page_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "pulse"
    path.write_bytes(stopwatch.blank())
    child = multiprocessing.get_context("fork").Process(target=_die_training, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    found = stopwatch.look(path)
    assert found is not None
    assert found.beats == 2
    assert found.total["training"] > 0


def _die_training(path: Path) -> None:
    watch = Stopwatch(path)
    watch.beat()
    with watch.spent("training"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_no_page_no_readings(tmp_path: Path) -> None:
    assert stopwatch.look(tmp_path / "none") is None
    (tmp_path / "half").write_bytes(b"1234")
    assert stopwatch.look(tmp_path / "half") is None


def test_a_bare_context_counts_too(tmp_path: Path) -> None:
    ctx = LocalContext({}, 0, tmp_path / "output")
    ctx.log(1, loss=1.0)
    with ctx.spent("generation"), spent("functions"):
        sum(range(10_000))
    ctx.checkpoint(1, {"x": 1})
    assert ctx.times["functions"] > 0
    assert ctx.times["saving"] > 0
    assert ctx.times["start_up"] > 0


def test_it_is_light() -> None:
    code = "import sys, engine.runtime.stopwatch; sys.exit('torch' in sys.modules or 'sqlalchemy' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
