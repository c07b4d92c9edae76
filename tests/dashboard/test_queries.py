"""What the pages read, on SQLite and PostgreSQL alike."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dashboard import evidence, queries, trajectories
from dashboard.evidence import AttemptRow
from engine.store.session import Database
from tests.dashboard.seed import populate
from tests.dashboard.seed_runs import ITERATIONS, OUTLINES
from tests.dashboard.seed_texts import HOSTILE

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def store(db: Database) -> Database:
    with db.write() as session:
        populate(session, now=NOW)
    return db


def test_what_the_pages_read(store: Database) -> None:
    with store.read() as session:
        rows = {row.handle: row for row in queries.find_runs(session)}
        assert set(rows) == {outline.handle for outline in OUTLINES}
        assert (rows["best-lang-ppo-1"].method, rows["best-lang-ppo-1"].model) == ("ppo", "scratch:llama-nano")
        assert [row.handle for row in queries.find_runs(session, tags=("games", "candidates"))] == [
            "twenty-questions-2"
        ]
        assert [row.handle for row in queries.find_runs(session, name="grace")] == ["best-lang-6", "best-lang-4"]
        assert len(queries.find_runs(session, limit=3)) == 3
        assert queries.statuses(session) == {"succeeded": 8, "failed": 1, "cancelled": 1, "running": 1, "queued": 1}
        assert queries.tags(session) == ["baseline", "candidates", "games", "paper"]

        run = queries.run(session, "best-lang-5")
        assert (run.spec, run.method, run.resolved["algorithm"]["generator"]["kl"]) == ("best_lang@3", "archer", 0.02)
        assert queries.sibling(session, run) == "best-lang-4"
        assert queries.previous_source(session, "best_lang", 1) is None
        assert "generator" not in (queries.previous_source(session, "best_lang", 3) or "")
        assert [(stage.name, stage.inputs) for stage in queries.stages_of(session, run.id)] == [
            ("model", ()),
            ("train", ("model",)),
            ("evaluate", ("model", "train")),
        ]

        series = {(row.stage, row.key): row for row in evidence.series_of(session, run.id, buckets=100)}
        assert len(series["train", "policy/kl"].points) == ITERATIONS
        assert series["train", "policy/kl"].exact
        loss = series["model", "train/loss"]
        assert len(loss.points) == 63  # 500 steps by 8: by 4 they would be more than 100
        assert not loss.exact
        assert loss.points[0].seconds >= 0

        evaluations = evidence.evaluations_of(session, run.id)
        assert evidence.costs(evaluations)["scored_episodes"] == ITERATIONS * 16
        assert [row.mean for row in evidence.leading(evaluations)] == list(rows["best-lang-5"].scores)
        assert list(evidence.curves(evaluations)) == ["score on train", "score/generator on train"]
        assert {row.stage for row in evidence.curves(evaluations)["score on train"]} == {"train"}
        assert evidence.axes(evaluations) == ["step", "scored_episodes", "generated_tokens", "seconds"]

        (found,) = trajectories.find_samples(session, run.id, containing="PWNED")
        detail = trajectories.sample(session, run.id, found.id)
        assert detail is not None
        assert detail.decisions[0][0].text == HOSTILE
        other = queries.run(session, "best-lang-1")
        assert trajectories.sample(session, other.id, found.id) is None, "a sample belongs to its own run"
        assert trajectories.find_samples(session, run.id, containing="100%_") == [], "no wildcard is heard"
        best = [row.score for row in trajectories.find_samples(session, run.id, order="best")]
        assert best == sorted(best, reverse=True)  # type: ignore[type-var]

        failed = queries.run(session, "best-lang-4")
        assert [(row.stage, row.number) for row in evidence.attempts_of(session, failed.id)] == [
            ("train", 2),
            ("train", 1),
            ("model", 1),
        ]
        assert evidence.events_of(session, failed.id)[0].kind == "failed"
        assert [row.step for row in evidence.checkpoints_of(session, run.id)] == [60, 40, 20]


def attempt(log_path: Path | None) -> AttemptRow:
    path = None if log_path is None else str(log_path)
    return AttemptRow("train", 1, "running", "", None, None, {}, path, "what SQL kept", NOW, NOW + timedelta(seconds=1))


def test_a_log_is_read_from_its_file(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "train-1.log"
    log.parent.mkdir()
    log.write_text("first\n" + "x" * 100 + "\n" * 70_000 + "last\n")

    text = evidence.log_end(attempt(log), tmp_path / "logs")

    assert text.endswith("last\n")
    assert text.startswith("…\n")
    assert "first" not in text


@pytest.mark.parametrize("place", ["secret", "logs/../secret", "logs/missing"])
def test_no_other_file_is_read(tmp_path: Path, place: str) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "secret").write_text("key")

    assert evidence.log_end(attempt(tmp_path / place), tmp_path / "logs") == "what SQL kept"


def test_candidates_may_stand_beside_other_things() -> None:
    plain = [{"text": "a", "q": 0.5, "chosen": True}, {"text": "b", "q": None, "chosen": False}]

    listed, beside = (list(trajectories._candidates(step)) for step in (plain, {"candidates": plain, "reply": "Yes."}))

    assert listed == beside
    assert [(one.q, one.chosen) for one in listed] == [(0.5, True), (None, False)]
