"""A nursery that loses its worker: its stage processes go on, are found by a successor, or end in good time."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from engine.store.processes import process_started
from workers.children import ALONE_S, GRACE_S, Child, Children
from workers.supervisor import Times

Until = Callable[..., object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ("long" * 40)  # an address of a Unix socket has 108 bytes


@pytest.fixture
def make(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Children]]:
    """Children of a worker; all are closed in the end."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("RLX_PRELOAD", "patient_stage")
    made: list[Children] = []

    def make(**patience: float) -> Children:
        made.append(Children(folder, **patience))
        return made[-1]

    yield make
    for children in made:
        children.close()


def bear(children: Children, tmp_path: Path, name: str = "a") -> Child:
    """A process that lives until the file `task` is there."""
    child = children.spawn(name, tmp_path / "task", tmp_path / f"{name}.log", run_id=uuid4())
    assert child.wait_for_birth(120)
    return child


def die(children: Children) -> None:
    """What a nursery sees of a worker that was killed."""
    for nursery in children._own.values():
        nursery.channel.shutdown(socket.SHUT_RDWR)


def test_a_successor_finds_the_child_and_hears_of_its_end(
    make: Callable[..., Children], tmp_path: Path, until: Until, folder: Path
) -> None:
    first, second = make(), make()
    child = bear(first, tmp_path)
    nursery = first.nursery_pid
    die(first)
    until(lambda: list(folder.glob("*.sock")))

    adopted = second.adopt(os.getpid())

    assert list(adopted) == ["a"]
    assert adopted["a"].pid == child.pid
    assert adopted["a"].wait(0) is None
    assert second.adopt(os.getpid()) == {}  # one worker at a time
    (tmp_path / "task").touch()
    assert adopted["a"].wait(120) == 7
    until(lambda: nursery is None or process_started(nursery) is None)  # it bears nobody any more
    assert list(folder.glob("*.sock")) == []


def test_a_successor_that_dies_has_a_successor_too(
    make: Callable[..., Children], tmp_path: Path, until: Until, folder: Path
) -> None:
    first, second, third = make(), make(), make()
    bear(first, tmp_path)
    die(first)
    until(lambda: list(folder.glob("*.sock")))
    second.adopt(os.getpid())
    second._adopted[0].channel.shutdown(socket.SHUT_RDWR)
    until(lambda: list(folder.glob("*.sock")))
    adopted = third.adopt(os.getpid())
    (tmp_path / "task").touch()
    assert adopted["a"].wait(120) == 7


@pytest.mark.parametrize("deaf", ["", "1"], ids=["asked", "killed"])
def test_where_nobody_comes_the_child_ends(
    make: Callable[..., Children],
    tmp_path: Path,
    until: Until,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    deaf: str,
) -> None:
    monkeypatch.setenv("DEAF", deaf)
    children = make(alone_s=0.3, grace_s=0.3 if deaf else 600)
    child, nursery = bear(children, tmp_path), children.nursery_pid
    assert child.pid is not None
    assert nursery is not None
    die(children)
    until(lambda: process_started(child.pid or 0) is None and process_started(nursery) is None)
    assert list(folder.glob("*.sock")) == []


def test_a_door_without_anybody_behind_it_is_taken_away(
    make: Callable[..., Children], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    left = folder / f"{os.getpid()}-1.sock"
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(left.name)
    assert make().adopt(os.getpid()) == {}
    assert not left.exists()


def test_all_is_over_before_the_lease_is() -> None:
    times = Times()
    assert ALONE_S + GRACE_S + times.heartbeat_s < times.lease_s
