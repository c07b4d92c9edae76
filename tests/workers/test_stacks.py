"""Where processes stand: those that can say so do, the others are looked at, nobody is harmed or waited for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import until
from workers import stacks

TELLS = (
    "import faulthandler, signal, time; faulthandler.register(signal.SIGUSR1); print('up', flush=True); time.sleep(600)"
)
DEAF = "import time; print('up', flush=True); time.sleep(600)"
OTHERWISE = (
    "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: None); print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "stage.log"
    path.write_text("step 1\n")
    return path


class Started:
    """Processes in sessions of their own, ended with the test."""

    def __init__(self, log: Path) -> None:
        self.log, self.all = log, list[subprocess.Popen[bytes]]()

    def __call__(self, code: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as err:
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=err, start_new_session=True
            )
        self.all.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        until(lambda: _asleep(process.pid))  # as it is about to be
        return process


def _asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.fixture
def started(log: Path) -> Iterator[Started]:
    found = Started(log)
    yield found
    for process in found.all:
        process.kill()
        process.communicate()


def test_a_python_with_a_fault_handler_writes_its_own_stack(started: Started, log: Path) -> None:
    process = started(TELLS)
    (entry,) = stacks.dump(process.pid, log)
    assert 'File "<string>", line 1 in <module>' in entry["stacks"]
    assert entry["stacks"] in log.read_text()
    assert stacks.words([entry]) == 'File "<string>", line 1 in <module>'


def test_a_process_that_the_signal_would_end_is_not_sent_it(started: Started, log: Path) -> None:
    process = started(DEAF)
    (entry,) = stacks.dump(process.pid, log)
    assert process.poll() is None
    assert entry["state"].startswith("S")
    assert "waits in" in entry["threads"][0]
    assert " waits in " in stacks.words([entry])


def test_one_that_does_something_else_with_the_signal_is_looked_at(
    started: Started, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "_PATIENCE_S", 0.2)
    (entry,) = stacks.dump(started(OTHERWISE).pid, log)
    assert entry["stacks"] == ""
    assert entry["threads"]


def test_a_stopped_process_is_not_waited_for_beyond_the_time_for_all(
    started: Started, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacks, "_IN_ALL_S", 0.0)
    process = started(TELLS)
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    (entry,) = stacks.dump(process.pid, log)
    assert entry["stacks"] == ""
    assert entry["state"].startswith("T")


def test_a_tool_on_the_path_is_asked_about_those_that_stay_silent(
    started: Started, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "py-spy"
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho "stack of $4, by $1"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=":")
    process = started(DEAF)
    (entry,) = stacks.dump(process.pid, log)
    assert entry["stacks"] == f"stack of {process.pid}, by dump\n"
    assert entry["stacks"] in log.read_text()


def test_nobody_is_there_any_more(log: Path) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert stacks.dump(process.pid, log) == []
    assert stacks.words([]) == "nowhere to be seen"


def test_a_log_that_cannot_be_written_keeps_nobody(started: Started) -> None:
    (entry,) = stacks.dump(started(DEAF).pid, Path("/dev/full"))
    assert entry["threads"]
