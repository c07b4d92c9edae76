"""A run that is followed: failures are told and survived, by one process at a time, to the end of the run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.clock import utc_now
from engine.errors import MissingPackage, TrackingError
from engine.spec.base import SpecModel
from engine.spec.tracking import Mlflow, TensorBoard
from engine.store import events
from engine.tracking import bridges, following
from engine.tracking.bridge import About, Left, Point
from engine.tracking.bridges import Way
from engine.tracking.following import Turn, follow, once
from tests.tracking.conftest import Training


class Fragile:
    """A bridge to a list, which fails while `down` says so."""

    where = "a list"

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.down: str = ""
        self.described: list[str] = []

    def open(self, about: About, left: Left | None) -> bool:
        return left is not None

    def describe(self, about: About) -> None:
        self.described.append(about.status)

    def write(self, points: Sequence[Point]) -> None:
        if self.down:
            raise OSError(self.down)
        self.points += points

    def amend(self, points: Sequence[Point], since: float) -> bool:
        return True

    def flush(self) -> Left:
        return {}

    close = flush


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> Fragile:
    made = Fragile()

    def bridge(block: SpecModel, folder: Path, handle: str) -> Any:
        return made

    monkeypatch.setattr(bridges, "bridge", bridge)
    monkeypatch.setattr(following, "_WAITS_S", (0.0,))
    return made


WAY = Way("tensorboard", TensorBoard())


def turn(training: Training, owner: str = "me") -> Turn:
    made = Turn(training.lab.db, training.id, owner)
    assert made.take()
    return made


def followed(training: Training, waits: Sequence[Callable[[], object]]) -> Any:
    """Follow; between passes these happen one after another, and then the run ends."""
    left = iter([*waits, training.end])

    def wait(seconds: float) -> bool:
        next(left, lambda: None)()
        return False

    home, handle = training.lab.home, training.run.handle
    return follow(training.lab.db, home, training.id, handle, [WAY], turn(training), wait=wait)


def told(training: Training) -> list[tuple[str, str]]:
    with training.lab.db.read() as session:
        found = events.of_run(session, training.id)
    return [(event.kind, event.message) for event in found if event.kind.startswith("tracking.")]


def test_it_mirrors_what_comes_until_the_run_is_over(training: Training, fragile: Fragile) -> None:
    failed = followed(training, [lambda: training.log(range(1, 4)), lambda: training.log(range(4, 6))])

    assert failed == {"tensorboard": None}
    assert sorted({point.step for point in fragile.points}) == [1, 2, 3, 4, 5]
    assert len(fragile.points) == 10
    assert fragile.described[-1] == "succeeded"
    assert told(training) == []


def test_a_failure_is_told_once_and_made_up_for(training: Training, fragile: Fragile) -> None:
    def fail() -> None:
        fragile.down = "no space left"
        training.log(range(1, 4))

    def heal() -> None:
        fragile.down = ""

    failed = followed(training, [fail, lambda: None, lambda: None, heal, lambda: None])

    assert failed == {"tensorboard": None}
    assert [(point.key, point.step) for point in fragile.points] == [
        (key, step) for key in ("kl", "loss") for step in (1, 2, 3)
    ]
    (failure, recovery) = told(training)
    assert failure[0] == "tracking.failed"
    assert "no space left" in failure[1]
    assert "`rlx track best-lang-1 --to tensorboard` catches up" in failure[1]
    assert recovery == ("tracking.mirrored", "tensorboard is up to date again")


def test_a_bridge_that_stays_down_does_not_hold_the_process(training: Training, fragile: Fragile) -> None:
    fragile.down = "no network"
    failed = followed(training, [lambda: training.log(range(1, 4))])

    assert failed == {"tensorboard": "OSError: no network"}
    with training.lab.db.read() as session:
        assert set(events.failing_mirrors(session, training.id)) == {"tensorboard"}
    with training.lab.db.read() as session:
        from engine.store import locks

        assert not locks.taken(session, locks.tracking_lock(training.id), now=utc_now())


def test_catching_up_by_hand_clears_what_was_told(training: Training, fragile: Fragile) -> None:
    fragile.down = "no network"
    followed(training, [lambda: training.log(range(1, 4))])
    fragile.down = ""

    written, where = once(training.lab.db, training.lab.home, training.id, training.run.handle, WAY, turn(training))

    assert (written, where) == (6, "a list")
    with training.lab.db.read() as session:
        assert events.failing_mirrors(session, training.id) == {}


def test_what_a_library_says_becomes_our_error(training: Training, fragile: Fragile) -> None:
    training.log(range(1, 4))
    fragile.down = "no network"
    with pytest.raises(TrackingError, match="tensorboard cannot be written: OSError: no network"):
        once(training.lab.db, training.lab.home, training.id, training.run.handle, WAY, turn(training))


def test_one_process_at_a_time(training: Training) -> None:
    mine = turn(training)
    assert not Turn(training.lab.db, training.id, "other").take()
    mine.leave()
    assert Turn(training.lab.db, training.id, "other").take()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(
    training: Training, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]  # an import of it now fails
    training.log(range(1, 4))
    way = Way(name, bridges.BLOCKS[name]())

    with pytest.raises(MissingPackage, match=rf"needs the package {name}.*pip install 'rlx\[tracking\]'"):
        once(training.lab.db, training.lab.home, training.id, training.run.handle, way, turn(training))


def test_a_secret_that_is_not_set_is_named(training: Training) -> None:
    training.log(range(1, 4))
    way = Way("mlflow", Mlflow(uri="https://me:${env:NOWHERE_SET}@host"))
    with pytest.raises(Exception, match="NOWHERE_SET"):
        once(training.lab.db, training.lab.home, training.id, training.run.handle, way, turn(training))
