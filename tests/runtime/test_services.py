"""Services beside a stage: real processes with all sorts of vices. None is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from json import loads
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from engine.errors import Cause, DataError, ServiceDown
from engine.runtime import causes, ports, services
from engine.runtime.context import Address, Stopped
from engine.runtime.services import Around, running
from engine.store.processes import process_started
from tests.waiting import until

SERVER = Path(__file__).with_name("odd_server.py")
Run = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


@pytest.fixture
def run(tmp_path: Path, stop: threading.Event) -> Iterator[Run]:
    """`with run(odd=("sick",)) as addresses:` runs a server with these vices beside the block."""

    def run(*, around: dict[str, Any] | None = None, timeout_s: float = 60.0, **vices: tuple[str, ...]) -> Any:
        return running(
            {name: command(tmp_path / name, *chosen, start_timeout=timeout_s) for name, chosen in vices.items()},
            {},
            Around(lambda name: tmp_path / f"{name}.log", **(around or {})),
            stop,
        )

    yield run
    left = [pid for folder in tmp_path.iterdir() if folder.is_dir() for pid in starts(folder) if alive(pid)]
    assert left == [], "a service outlived its stage"


def command(folder: Path, /, *vices: str, **more: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    argv = [sys.executable, str(SERVER), "{port}", str(folder), *vices]
    defaults = {"kind": "command", "health": "/health", "folder": None, "env": {}, "gpus": 0, "start_timeout": 60.0}
    return {**defaults, "argv": argv, **more}


def starts(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / "starts").read_text().split()] if (folder / "starts").exists() else []


def alive(pid: int) -> bool:
    return process_started(pid) is not None


def get(address: Address, path: str) -> Any:
    connection = HTTPConnection(urlsplit(address.url).netloc, timeout=30)
    connection.request("GET", path)
    return loads(connection.getresponse().read())


def kill(address: Address) -> int:
    """End the service behind an address; the pid that it had."""
    pid = int(get(address, "/pid"))
    os.kill(pid, signal.SIGKILL)
    return pid


def test_they_run_beside_the_stage_and_end_with_it(run: Run, tmp_path: Path) -> None:
    with run(one=(), two=()) as addresses:
        assert list(addresses) == ["one", "two"]
        pids = [get(address, "/pid") for address in addresses.values()]
        assert pids == [*starts(tmp_path / "one"), *starts(tmp_path / "two")]
        assert [get(a, "/env?RLX_SERVICE_KEY") for a in addresses.values()] == [a.key for a in addresses.values()]
        assert len({address.key for address in addresses.values()}) == 2
        assert all(address.url.startswith("http://127.0.0.1:") for address in addresses.values())

    assert [alive(pid) for pid in pids] == [False, False]
    with pytest.raises(ConnectionRefusedError):
        get(addresses["one"], "/health")


def test_nobody_sees_the_key_who_should_not(run: Run, tmp_path: Path) -> None:
    with run(one=()) as addresses:
        key = addresses["one"].key
        assert key not in repr(addresses["one"])
        lines = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()]
        assert not any(key.encode() in line.read_bytes() for line in lines if line.exists())


def test_a_stage_without_services_starts_nothing(stop: threading.Event) -> None:
    before = threading.active_count()
    with running({}, {}, Around(lambda name: Path(name)), stop) as addresses:
        assert dict(addresses) == {}
        assert threading.active_count() == before


def test_it_finds_what_its_spec_gives_it_and_no_passwords(
    tmp_path: Path, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLX_DATABASE_URL", "postgresql://user:secret@host/db")
    service = command(tmp_path / "a", env={"OWN": "{host}:{port}/{key}"}, folder=str(tmp_path / "a"), gpus=2)
    with running({"a": service}, {}, Around(lambda n: tmp_path / "log", gpus=("3", "5")), stop) as addresses:
        address = addresses["a"]
        assert get(address, "/env?RLX_DATABASE_URL") is None
        assert get(address, "/env?CUDA_VISIBLE_DEVICES") == "3,5"
        assert get(address, "/env?OWN") == f"{urlsplit(address.url).netloc}/{address.key}"
        assert os.readlink(f"/proc/{get(address, '/pid')}/cwd") == str(tmp_path / "a")


def test_each_sees_its_own_gpus(tmp_path: Path, stop: threading.Event) -> None:
    both = {"a": command(tmp_path / "a", gpus=1), "b": command(tmp_path / "b", gpus=2)}
    with running(both, {}, Around(lambda n: tmp_path / f"{n}.log", gpus=("4", "5", "6")), stop) as addresses:
        seen = [get(addresses[name], "/env?CUDA_VISIBLE_DEVICES") for name in ("a", "b")]
    assert seen == ["4", "5,6"]


@pytest.mark.parametrize(
    ("vice", "said"),
    [
        ("sick", r"not healthy within 1 s \(`start_timeout`\): /health answers 500"),
        ("silent", r"not healthy within 1 s \(`start_timeout`\): /health does not answer"),
    ],
)
def test_one_that_never_gets_healthy(run: Run, tmp_path: Path, vice: str, said: str) -> None:
    with pytest.raises(ServiceDown, match=said) as caught, run(timeout_s=1.0, odd=(vice,), other=()):
        raise AssertionError("the stage must not begin")
    assert "the key is …" in str(caught.value), "the log's tail, without the key"
    assert not any(alive(pid) for name in ("odd", "other") for pid in starts(tmp_path / name))


def test_one_that_exits_fails_the_stage_at_once_with_its_last_words(run: Run, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ServiceDown, match=r"ended with status 3 before it was healthy") as caught, run(odd=("exits",)):
        raise AssertionError("the stage must not begin")
    assert time.monotonic() - begun < 30, "not after its start_timeout"
    assert "there is no such model" in str(caught.value)
    assert causes.of_exception(caught.value) is Cause.SERVICE_DOWN
    assert caught.value.retryable
    assert len(starts(tmp_path / "odd")) == 1


def test_a_program_that_is_not_there(tmp_path: Path, stop: threading.Event) -> None:
    service = command(tmp_path / "a", argv=["/no/such/program"])
    with (
        pytest.raises(ServiceDown, match=r"cannot be started: .*No such file"),
        running({"a": service}, {}, Around(lambda n: tmp_path / "log"), stop),
    ):
        raise AssertionError("the stage must not begin")


def test_one_that_dies_is_started_once_more_at_the_same_place(run: Run, tmp_path: Path) -> None:
    with run(odd=()) as addresses:
        first = kill(addresses["odd"])
        until(lambda: len(starts(tmp_path / "odd")) == 2)
        second = until(lambda: _quietly(lambda: get(addresses["odd"], "/pid")))
        assert second != first
        assert get(addresses["odd"], "/env?RLX_SERVICE_KEY") == addresses["odd"].key


def test_one_that_dies_twice_takes_the_stage_with_it(run: Run, tmp_path: Path, stop: threading.Event) -> None:
    def stage() -> None:
        with run(odd=()) as addresses:
            kill(addresses["odd"])
            until(lambda: _quietly(lambda: kill(addresses["odd"])))
            assert stop.wait(60), "the stage is asked to leave at a checkpoint"
            raise Stopped

    with pytest.raises(ServiceDown, match=r"ended by signal 9, after it had been started a second time"):
        stage()
    assert len(starts(tmp_path / "odd")) == 2


def test_what_the_stage_stumbles_over_then_is_only_the_consequence(run: Run, stop: threading.Event) -> None:
    def stage() -> None:
        with run(odd=("dies late",)) as addresses:
            kill(addresses["odd"])
            assert stop.wait(60)
            raise DataError("the answer is empty")

    with pytest.raises(ServiceDown) as caught:
        stage()
    assert isinstance(caught.value.__cause__, DataError)


def test_a_stage_that_does_not_notice_fails_all_the_same(run: Run, stop: threading.Event) -> None:
    def stage() -> None:
        with run(odd=("dies late",)) as addresses:
            kill(addresses["odd"])
            assert stop.wait(60)

    with pytest.raises(ServiceDown):
        stage()


def test_a_stage_that_does_not_leave_is_interrupted(
    run: Run, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "LEAVE_S", 0.2)
    before = signal.getsignal(signal.SIGUSR2)

    def stage() -> None:
        with run(odd=("dies late",)) as addresses:
            kill(addresses["odd"])
            threading.Event().wait(120)
            raise AssertionError("nobody interrupted")

    with pytest.raises(ServiceDown):
        stage()
    assert stop.is_set()
    assert signal.getsignal(signal.SIGUSR2) is before


def test_a_failing_stage_keeps_its_own_error(run: Run) -> None:
    with pytest.raises(DataError, match="row 3"), run(odd=()):
        raise DataError("row 3 is empty")


def test_a_stage_that_is_to_stop_does_not_wait_for_services(run: Run, stop: threading.Event) -> None:
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(Stopped), run(odd=("silent",)):
        raise AssertionError("the stage must not begin")


def test_while_they_start_the_stage_shows_that_it_lives(run: Run) -> None:
    beats: list[float] = []
    with run(around={"alive": lambda: beats.append(time.monotonic())}, odd=()):
        assert len(beats) > 1


@pytest.mark.parametrize("vices", [("deaf",), ("children",), ("deaf", "children")])
def test_whatever_it_started_ends_with_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vices: tuple[str, ...]
) -> None:
    monkeypatch.setattr("engine.runtime.service.GRACE_S", 0.5)
    with run(odd=vices):
        pids = starts(tmp_path / "odd")
        if "children" in vices:
            pids += map(int, (tmp_path / "odd" / "children").read_text().split())
        assert all(alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids)


def test_an_earlier_start_leaves_nobody_beside_the_next(run: Run, tmp_path: Path) -> None:
    with run(odd=("children",)) as addresses:
        children = [int(pid) for pid in (tmp_path / "odd" / "children").read_text().split()]
        kill(addresses["odd"])
        until(lambda: _quietly(lambda: get(addresses["odd"], "/pid")))
        assert not any(alive(pid) for pid in children)


class _Stranger(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_port_that_another_takes_first_is_left_to_it(run: Run, tmp_path: Path) -> None:
    """The stranger even answers that it is healthy."""
    with HTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        chosen = iter([stranger.server_port, stranger.server_port, ports.free_port()])
        with run(around={"free_port": partial(next, chosen)}, odd=()) as addresses:
            assert urlsplit(addresses["odd"].url).port != stranger.server_port
            assert get(addresses["odd"], "/env?RLX_SERVICE_KEY") == addresses["odd"].key
        stranger.shutdown()


def test_not_for_ever(run: Run) -> None:
    with HTTPServer(("127.0.0.1", 0), _Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        with pytest.raises(ServiceDown), run(around={"free_port": lambda: stranger.server_port}, odd=()):
            raise AssertionError("the stage must not begin")
        stranger.shutdown()


def test_free_ports_are_free() -> None:
    found = {ports.free_port() for _ in range(20)}
    assert len(found) > 10
    with socket.socket() as one:
        one.bind(("127.0.0.1", found.pop()))
        one.listen()
        assert ports.taken(one.getsockname()[1])
        assert not ports.is_anothers(one.getsockname()[1], [os.getpid()])
        assert ports.is_anothers(one.getsockname()[1], [])


STAGE = """
import sys, threading
from pathlib import Path
sys.path.insert(0, {tests!r})
from engine.runtime.services import Around, running
from tests.runtime.test_services import command
folder = Path({folder!r})
with running({{"odd": command(folder, "deaf", "children")}}, {{}}, Around(lambda n: folder / "log"), threading.Event()):
    (folder / "up").touch()
    threading.Event().wait()
"""


def test_none_outlives_a_stage_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    script = STAGE.format(tests=str(Path(__file__).parents[2]), folder=str(folder))
    stage = subprocess.Popen([sys.executable, "-c", script])
    until(lambda: (folder / "up").exists())
    (pid,) = starts(folder)
    children = [int(child) for child in (folder / "children").read_text().split()]

    os.kill(stage.pid, signal.SIGKILL)

    until(lambda: not any(alive(one) for one in [pid, *children]), "nobody is left", 30)
    assert stage.wait() == -signal.SIGKILL


def test_one_whose_keeper_is_killed_ends_with_it(run: Run, tmp_path: Path, stop: threading.Event) -> None:
    def stage() -> None:
        with run(odd=("deaf",)):
            (pid,) = starts(tmp_path / "odd")
            keeper = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            os.kill(keeper, signal.SIGKILL)
            assert stop.wait(60)
            until(lambda: not alive(pid), "the service ends", 30)

    with pytest.raises(ServiceDown, match="has lost its keeper"):
        stage()


def _quietly(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError:
        return None
