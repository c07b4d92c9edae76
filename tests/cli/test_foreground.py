"""Ctrl-C in the foreground: a clean stop that is waited for, and what one types to go on."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from engine.cli import following
from engine.store import queue
from engine.store.stages import Outcome
from engine.store.tables import RunId


@pytest.fixture
def worker():
    """A process that stands for the run's own worker: it lives until it is told to leave."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()


def interrupting(monkeypatch, times, then=lambda: None):
    """Snapshots whose first `times` readings are interrupted; `then` happens before the next."""
    real, left = following.snapshot, [times]

    def snapshot(db, run_id):
        if left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        then()
        return real(db, run_id)

    monkeypatch.setattr(following, "snapshot", snapshot)


def test_ctrl_c_asks_for_a_stop_and_waits_for_the_checkpoint(lab, worker, monkeypatch, capsys):
    run = lab.submit()
    claimed = lab.training(run)
    interrupting(monkeypatch, 1, then=lambda: lab.finish(claimed, Outcome.stopped()))

    with pytest.raises(typer.Exit) as left:
        following.foreground(lab.db, RunId(run.id), run.handle, worker)

    assert left.value.exit_code == 130
    said = capsys.readouterr().err
    assert "stopping at the next checkpoint" in said
    assert "rlx resume best-lang-1" in said


def test_a_second_ctrl_c_kills_what_does_not_stop(lab, worker, monkeypatch, capsys):
    run = lab.submit()
    lab.training(run)
    interrupting(monkeypatch, 2)

    with pytest.raises(typer.Exit) as left:
        following.foreground(lab.db, RunId(run.id), run.handle, worker)

    assert left.value.exit_code == 130
    assert "is being killed" in capsys.readouterr().err
    assert following.snapshot(lab.db, RunId(run.id)).status == "stopping"
    with lab.db.read() as session:
        assert queue.stop_requested(session, run.id) == 0


def test_ctrl_c_on_somebody_elses_run_only_stops_the_looking(lab, monkeypatch, capsys):
    run = lab.submit()
    lab.training(run)
    interrupting(monkeypatch, 1)

    with pytest.raises(typer.Exit) as left:
        following.foreground(lab.db, RunId(run.id), run.handle, None)

    assert left.value.exit_code == 130
    assert "rlx watch best-lang-1" in capsys.readouterr().err
    assert following.snapshot(lab.db, RunId(run.id)).status == "running"


def test_a_killed_worker_is_noticed_and_resume_named(lab, worker, capsys):
    run = lab.submit()
    lab.training(run)
    worker.kill()
    worker.wait()

    followed = following.foreground(lab.db, RunId(run.id), run.handle, worker)

    assert followed.lost == "the worker left (killed by SIGKILL) before the run was over"
    assert following.exit_code(followed) == 1


def test_a_succeeded_run_lets_its_worker_leave(lab, worker, capsys):
    run = lab.succeeded()
    worker.stdin.close()  # its work is done
    followed = following.foreground(lab.db, RunId(run.id), run.handle, worker)
    assert following.exit_code(followed) == 0
    assert worker.poll() == 0


def test_the_signal_of_a_scheduler_counts_as_ctrl_c_and_is_given_back(lab, worker, monkeypatch):
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    run = lab.submit()
    claimed = lab.training(run)
    real, sent = following.snapshot, []

    def snapshot(db, run_id):
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        elif len(sent) == 1:
            sent.append(True)
            lab.finish(claimed, Outcome.stopped())
        return real(db, run_id)

    monkeypatch.setattr(following, "snapshot", snapshot)
    with pytest.raises(typer.Exit) as left:
        following.foreground(lab.db, RunId(run.id), run.handle, worker)
    assert left.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before
