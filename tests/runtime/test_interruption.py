"""Moments at which a stage's process kills itself: once each, and never unless the environment says so."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from engine.runtime import checkpoint
from engine.runtime.interruption import ENVIRONMENT, Interruption, Moment, killed, read_moments, saves, write_moments
from engine.runtime.shelf import Shelf

FORK = multiprocessing.get_context("fork")


def life(folder: Path, shelf: Path) -> None:
    """Two saves of a stage, each after three entries of its stream."""
    interruption = Interruption.of({ENVIRONMENT: str(folder)}, "run-1", "train")
    assert interruption is not None
    place = 0
    for step in (1, 2):
        for _ in range(3):
            interruption.reached("note", place)
            place += 1
        Shelf(shelf).save(step, {"step": step}, reached=lambda kind, place=place: interruption.reached(kind, place))


def lived(folder: Path, shelf: Path) -> int | None:
    """The exit code of a process that leads that life."""
    process = FORK.Process(target=life, args=(folder, shelf))
    process.start()
    process.join()
    return process.exitcode


def test_without_the_environment_nothing_interrupts(tmp_path: Path):
    assert Interruption.of({}, "run-1", "train") is None
    assert Interruption.of({ENVIRONMENT: ""}, "run-1", "train") is None
    assert ENVIRONMENT not in os.environ


def test_a_process_comes_past_its_saves_where_nothing_is_chosen(tmp_path: Path):
    assert lived(tmp_path, tmp_path / "shelf") == 0
    assert saves(tmp_path, "run-1", "train") == [
        Moment("train", kind, place) for place in (3, 6) for kind in ("draft", "renamed")
    ]
    assert saves(tmp_path, "run-1", "other") == []


def test_it_dies_at_every_chosen_moment_once(tmp_path: Path):
    chosen = [Moment("train", "draft", 3), Moment("train", "note", 4), Moment("train", "renamed", 6)]
    write_moments(tmp_path, "run-1", [*chosen, Moment("other", "note", 0)])
    assert killed(tmp_path, "run-1") == []

    codes = [lived(tmp_path, tmp_path / "shelf") for _ in range(4)]

    assert codes == [-signal.SIGKILL] * 3 + [0]
    assert sorted(killed(tmp_path, "run-1")) == sorted(chosen)
    assert read_moments(tmp_path, "run-2") == []


@pytest.mark.parametrize("kind, found", [("draft", []), ("renamed", [1])])
def test_a_save_that_it_dies_in_is_whole_or_not_there(tmp_path: Path, kind: str, found: list[int]):
    write_moments(tmp_path, "run-1", [Moment("train", kind, 3)])  # type: ignore[arg-type]

    assert lived(tmp_path, tmp_path / "shelf") == -signal.SIGKILL

    shelf = Shelf(tmp_path / "shelf")
    assert [kept.manifest.step for kept in shelf.all()] == found
    for kept in shelf.all():
        assert checkpoint.read(kept.path).state["step"] == kept.manifest.step
    if not found:  # it was really half-way
        (draft,) = (tmp_path / "shelf").glob("attempt-1/.step-1.*")
        assert (draft / checkpoint.STATE).exists()
        assert not (draft / checkpoint.MANIFEST).exists()
