"""A store with runs in it, written through the store's own verbs, and the command line run inside this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.cli import app as edge
from engine.cli import places
from engine.plan.stage import Plan, Stage
from engine.runtime.context import Evaluation, ItemScore, Sample
from engine.settings import Settings
from engine.store import checkpoints, evaluations, runs, samples, stages, workers
from engine.store.artifact_store import StoredArtifact
from engine.store.session import Database, open_database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import Run, StageId, WorkerId

SPEC = {
    "version": 1,
    "name": "best_lang",
    "seed": 0,
    "dataset": {"items": [{"prompt": "Which?", "answer": "Rust"}], "main_prompt": "", "system_prompt": ""},
    "algorithm": {"name": "archer", "iterations": 40},
    "model": {"name": "scratch:llama-nano"},
}


@dataclass
class Answer:
    """What a command line gave back."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def home(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The settings of this test's own home, as the command line will read them."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NO_COLOR", "1")
    places.the_settings.cache_clear()
    yield settings
    places.the_settings.cache_clear()


@pytest.fixture
def rlx(home: Settings, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Run one command line in this process."""

    def run(*line: str) -> Answer:
        capsys.readouterr()
        code = edge.run(list(line))
        shown = capsys.readouterr()
        return Answer(code, shown.out, shown.err)

    return run


@dataclass
class Lab:
    """Writes runs into the store as workers would."""

    db: Database
    home: Path
    now: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)
    worker: WorkerId | None = None
    sequence: dict[StageId, int] = field(default_factory=dict)

    def tick(self, seconds: float = 1.0) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def submit(
        self, name: str = "best_lang", *, seed: int = 0, dataset: dict[str, Any] | None = None, **more: Any
    ) -> Run:
        """A run of two stages, `model` and `train`."""
        plan = Plan(
            name,
            seed,
            (
                Stage("model", "lm.prepare", "engine.lm.warmup:prepare", (), config={"unique": f"{self.tick()}"}),
                Stage("train", "archer.train", "engine.methods.archer.stages:train", (), inputs={"model": "model"}),
            ),
        )
        spec = {**SPEC, "name": name, "seed": seed, "dataset": dataset or SPEC["dataset"]}
        submission = runs.Submission(source=f"version: 1\nname: {name}\n", resolved=spec, base={"name": name}, **more)
        with self.db.write() as session:
            return runs.submit(session, plan, submission, now=self.now)

    def claim(self, run: Run, name: str) -> Claimed:
        """Begin an attempt at a stage."""
        with self.db.write() as session:
            if self.worker is None:
                self.worker = workers.register(
                    session, name="w1", host="here", pid=1, pid_started=None, queues=["default"], slots=2, now=self.now
                )
            stage = next(found for found in stages.for_run(session, run.id) if found.name == name)
            claimed = stages.claim(
                session, StageId(stage.id), worker=self.worker, devices=[], now=self.tick(), lease_s=15
            )
        assert claimed is not None
        return claimed

    def finish(self, claimed: Claimed, outcome: Outcome | None = None) -> None:
        """End an attempt, by default with an artifact."""
        sha = f"{hash((claimed.handle, claimed.name)) & (2**64 - 1):064x}"
        done = outcome or Outcome.succeeded(StoredArtifact(sha, f"/artifacts/{sha}", claimed.kind, 10, 1))
        with self.db.write() as session:
            stages.finish(session, claimed, done, now=self.tick(10))

    def training(self, run: Run) -> Claimed:
        """A run whose `train` stage has begun."""
        self.finish(self.claim(run, "model"))
        return self.claim(run, "train")

    def evaluate(
        self, claimed: Claimed, step: int, scores: list[float], *, metric: str = "score", **cost: float
    ) -> None:
        """Store an evaluation of one item."""
        evaluation = Evaluation(step, metric, [ItemScore(0, tuple(scores))], functions_hash="f" * 64, cost=cost)
        with self.db.write() as session:
            evaluations.record(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                evaluation=evaluation,
                now=self.tick(),
            )

    def sample(self, claimed: Claimed, *given: Sample) -> None:
        """Store samples."""
        first = self.sequence.get(claimed.stage_id, 0)
        self.sequence[claimed.stage_id] = first + len(given)
        with self.db.write() as session:
            samples.add(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                first=first,
                samples=given,
            )

    def checkpoint(self, claimed: Claimed, step: int, *labels: str) -> Path:
        """Store a checkpoint with a model's folder in it."""
        path = self.home / "checkpoints" / claimed.handle / f"step-{step}"
        (path / "generator").mkdir(parents=True)
        (path / "generator" / "config.json").write_text("{}")
        with self.db.write() as session:
            checkpoints.record(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                step=step,
                labels=labels,
                uri=str(path),
                sha256="c" * 64,
                size=1234,
                now=self.tick(),
            )
        return path

    def succeeded(self, ones: int = 9, **more: Any) -> Run:
        """A finished run that went from 1 in 10 to `ones` in 10."""
        run = self.submit(**more)
        claimed = self.training(run)
        self.evaluate(claimed, 0, scores(1), scored_episodes=0, seconds=0)
        self.evaluate(claimed, 10, scores(ones), scored_episodes=100, seconds=5)
        self.checkpoint(claimed, 10, "best", "latest")
        self.finish(claimed)
        return run


def scores(ones: int, of: int = 10) -> list[float]:
    return [1.0] * ones + [0.0] * (of - ones)


@pytest.fixture
def lab(home: Settings) -> Iterator[Lab]:
    """A store on the embedded default."""
    database = open_database(home)
    yield Lab(database, home.home)
    database.close()
