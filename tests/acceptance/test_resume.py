"""Killed twice in the middle of training, resumed, and at the end the same weights as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import select

from engine.store.session import open_database
from engine.store.tables import Artifact, Attempt, Checkpoint, Stage, Worker
from tests.acceptance.rlx_command import SMALL, Rlx, eventually

FEW = ("evaluation.runs_per_item=2",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def weights(home: Path) -> dict[str, str]:
    """SHA-256 of every weight file that training left, by its path in the artifact."""
    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    with database.read() as session:
        uri = session.scalar(
            select(Artifact.uri).join(Stage, Stage.artifact_id == Artifact.id).where(Stage.name == "train")
        )
    database.engine.dispose()
    assert uri is not None, "the stage `train` has no artifact"
    folder = Path(uri.removeprefix("file://"))
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def trained_past(home: Path, step: int, attempt: int) -> tuple[int, int] | None:
    """(pid of the stage's process, pid of its worker) once that attempt at `train` has a checkpoint past `step`."""
    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    try:
        with database.read() as session:
            row = session.execute(
                select(Attempt.pid, Worker.pid)
                .join(Stage, Stage.id == Attempt.stage_id)
                .join(Worker, Worker.id == Attempt.worker_id)
                .join(Checkpoint, Checkpoint.stage_id == Stage.id)
                .where(Stage.name == "train", Attempt.number == attempt, Attempt.status == "running")
                .where(Checkpoint.attempt == attempt, Checkpoint.step > step)
            ).first()
            return None if row is None or row[0] is None else (row[0], row[1])
    finally:
        database.engine.dispose()


def test_killed_and_resumed_ends_in_the_weights_of_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed, killed = Rlx(tmp_path / "undisturbed"), Rlx(tmp_path / "killed")
    for rlx in (undisturbed, killed):
        rlx.home.mkdir()
    undisturbed("submit", "specs/best_lang.yaml", *SMALL, *FEW)

    submitted = killed.start("submit", "specs/best_lang.yaml", *SMALL, *FEW, "retries.backoff=0.1")
    stage, _ = eventually(lambda: trained_past(killed.home, 2, 1), "a checkpoint of the first attempt")
    os.kill(stage, signal.SIGKILL)
    stage, worker = eventually(lambda: trained_past(killed.home, 5, 2), "a checkpoint of the second attempt")
    os.kill(worker, signal.SIGKILL)
    _, said = submitted.communicate(timeout=120)
    assert submitted.returncode == 1
    assert "rlx resume best-lang-1" in said
    killed("resume", "best-lang-1")

    shown = killed.json("show", "best-lang-1")
    assert shown["status"] == "succeeded"
    found, expected = weights(killed.home), weights(undisturbed.home)
    assert {Path(name).parts[0] for name in found} == {"best", "latest"}
    assert found == expected
