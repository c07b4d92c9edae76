"""The context under a worker: exactly-once reports across attempts, checkpoints that count once recorded."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import DataError, ResumeError, SpecError, StaleAttempt
from engine.runtime import checkpoint, left_behind
from engine.runtime.context import Evaluation, Functions, ItemScore, Sample, StageContext
from engine.runtime.engine_context import EngineContext
from engine.runtime.shelf import Kept, Shelf, remove
from engine.runtime.task import Task
from engine.store import checkpoints, evaluations, fingerprints, metrics, samples, stages
from engine.store.fingerprints import Layer
from engine.store.session import Database


def no_functions(config: object, services: object) -> Functions:
    raise SpecError("none here")


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        left_behind, "WAIT_S", 0.0
    )  # for attempts that live on beside their successors, as some here do


def context(task: Task) -> EngineContext:
    return EngineContext(task, no_functions, threading.Event())


def texts(db: Database, task: Task) -> list[str]:
    with db.read() as session:
        return sorted(sample.text for sample in samples.of_run(session, task.claimed.run_id, limit=1000))


def test_it_is_a_stage_context(claim: Callable[..., Task]) -> None:
    ctx: StageContext = context(claim(config={"lr": 0.5}, extra={"n": 1}))
    assert (ctx.config["lr"], ctx.extra["n"], ctx.seed, ctx.device) == (0.5, 1, 7, "cpu")
    assert not ctx.should_stop
    assert dict(ctx.inputs) == {}


def test_everything_reported_is_in_the_store(db: Database, claim: Callable[..., Task]) -> None:
    task = claim()
    ctx = context(task)
    ctx.log(1, {"loss": 2.0}, lr=0.5)
    ctx.log(2, loss=1.0)
    ctx.sample(Sample(1, "a", score=0.5, item=3), Sample(1, "b"))
    ctx.evaluation(Evaluation(2, "score", [ItemScore(0, (0.0, 1.0)), ItemScore(1, (1.0, 1.0))]))
    ctx.progress(2, 4, "half")
    path = ctx.checkpoint(2, {"x": 1}, labels=("latest", "best"))
    ctx.deliver()

    with db.read() as session:
        run_id = task.claimed.run_id
        assert metrics.keys(session, run_id) == ["loss", "lr"]
        assert [point.value for point in metrics.curve(session, run_id, "loss").points] == [2.0, 1.0]
        (evaluation,) = evaluations.of_run(session, run_id)
        assert (evaluation.mean, evaluation.count) == (0.75, 4)
        (row,) = checkpoints.of_run(session, run_id)
        assert (row.step, row.uri, sorted(row.labels)) == (2, str(path), ["best", "latest"])
        assert row.sha256 == checkpoint.read_manifest(path).sha256
        (stage,) = stages.for_run(session, run_id)
        assert (stage.done, stage.total, stage.note) == (2, 4, "half")
    assert texts(db, task) == ["a", "b"]


def test_an_evaluation_without_finite_scores_is_refused_where_it_is_made(claim: Callable[..., Task]) -> None:
    with pytest.raises(DataError, match="finite"):
        context(claim()).evaluation(Evaluation(1, "score", [ItemScore(0, (float("nan"),))]))


def test_what_is_sampled_again_after_a_resume_is_there_once(db: Database, claim: Callable[..., Task]) -> None:
    first = claim()
    ctx = context(first)
    ctx.sample(Sample(1, "before 1"))
    ctx.checkpoint(1, {"step": 1})
    ctx.sample(Sample(1, "after 1"), Sample(2, "before 2"))
    ctx.deliver()

    second = claim(after=first)
    ctx = context(second)
    restored = ctx.restore()
    assert restored is not None
    assert restored.state["step"] == 1
    ctx.sample(Sample(1, "after 1"), Sample(2, "before 2"))
    ctx.checkpoint(2, {"step": 2})
    ctx.sample(Sample(2, "after 2"))
    ctx.deliver()

    third = claim(after=second)
    ctx = context(third)
    restored = ctx.restore()
    assert restored is not None
    assert restored.state["step"] == 2
    ctx.sample(Sample(2, "after 2"))
    ctx.deliver()

    assert texts(db, third) == sorted(["before 1", "after 1", "before 2", "after 2"])


def streamed(db: Database, task: Task) -> list[tuple[int, int, str, int]]:
    with db.read() as session:
        return [
            (*entry[:2], str(entry.layer), entry.value)
            for entry in fingerprints.of_stage(session, task.claimed.stage_id)
        ]


def note(ctx: EngineContext, step: int, *values: str) -> None:
    ctx.trace.step = step
    for value in values:
        ctx.trace.note(Layer.DATA, value)


def test_what_is_noted_again_after_a_resume_is_there_once(db: Database, claim: Callable[..., Task]) -> None:
    whole = claim(extra={"n": 1})
    ctx = context(whole)
    for step in (1, 2, 3):
        note(ctx, step, f"{step} a", f"{step} b")
        ctx.checkpoint(step, {"step": step})
    note(ctx, 4, "4 a")
    ctx.deliver()

    first = claim(extra={"n": 2})
    ctx = context(first)
    note(ctx, 1, "1 a", "1 b")
    ctx.checkpoint(1, {"step": 1})
    note(ctx, 2, "2 a", "wrong", "too much")
    ctx.deliver()  # reported, and behind the checkpoint

    second = claim(after=first)
    ctx = context(second)
    note(ctx, 0, "before the restore, as a stage's first state may")
    assert ctx.restore() is not None
    note(ctx, 2, "2 a", "2 b")
    ctx.checkpoint(2, {"step": 2})
    note(ctx, 3, "3 a", "3 b")
    ctx.checkpoint(3, {"step": 3})
    note(ctx, 4, "another")
    assert ctx.restore() is not None  # back to its own newest
    note(ctx, 4, "4 a")
    ctx.deliver()

    assert streamed(db, second) == streamed(db, whole)
    assert [entry[:2] for entry in streamed(db, whole)] == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4)]


def test_an_attempt_that_begins_anew_notes_anew(db: Database, claim: Callable[..., Task]) -> None:
    first = claim()
    ctx = context(first)
    note(ctx, 1, "a", "b", "c")
    ctx.deliver()
    second = claim(after=first)
    ctx = context(second)
    assert ctx.restore() is None
    note(ctx, 1, "a")
    ctx.deliver()

    assert len(streamed(db, second)) == 1


def test_what_the_users_functions_answer_is_noted(claim: Callable[..., Task]) -> None:
    class Answers:
        hash, has_reply = "h", True

        def score(self, texts: list[str], answers: list[object]) -> list[float]:
            return [0.5] * len(texts)

        def reply(self, texts: list[str], answers: list[object]) -> list[str]:
            return ["yes"] * len(texts)

        def close(self) -> None: ...

    task = claim()
    ctx = EngineContext(task, lambda config, services: Answers(), threading.Event())  # type: ignore[arg-type,return-value]
    assert ctx.functions.score(["a"], [None]) == [0.5]
    assert ctx.functions.reply(["a"], [None]) == ["yes"]
    assert (ctx.functions.hash, ctx.functions.has_reply) == ("h", True)
    assert ctx.trace.place == 2


def test_an_attempt_that_begins_anew_samples_anew(db: Database, claim: Callable[..., Task]) -> None:
    first = claim()
    ctx = context(first)
    ctx.sample(Sample(1, "one"))
    ctx.deliver()
    second = claim(after=first)
    ctx = context(second)
    assert ctx.restore() is None
    ctx.sample(Sample(1, "one"))
    ctx.deliver()

    assert texts(db, second) == ["one"]


def test_a_checkpoint_that_was_not_recorded_does_not_count(db: Database, claim: Callable[..., Task]) -> None:
    first = claim()
    ctx = context(first)
    recorded = ctx.checkpoint(1, {"step": 1})
    ctx.deliver()
    # As if killed between the write to disk and the record in the store.
    shutil.copytree(recorded, recorded.with_name("step-2"))

    restored = context(claim(after=first)).restore()
    assert restored is not None
    assert restored.step == 1


def test_the_newest_two_and_the_labelled_ones_are_kept_on_disk_and_in_the_store(
    db: Database, claim: Callable[..., Task]
) -> None:
    task = claim()
    ctx = context(task)
    for step in range(1, 7):
        ctx.checkpoint(step, {}, labels=("latest", "best") if step == 2 else ("latest",))
        ctx.deliver()

    kept = sorted(path.name for path in task.checkpoints.glob("attempt-1/step-*"))
    with db.read() as session:
        rows = checkpoints.of_run(session, task.claimed.run_id)
    assert kept == ["step-2", "step-5", "step-6"]
    assert [(row.step, row.labels) for row in rows] == [(2, ["best"]), (5, []), (6, ["latest"])]


def test_a_stale_attempt_can_neither_record_nor_remove(db: Database, claim: Callable[..., Task]) -> None:
    first = claim()
    stale = context(first)
    stale.checkpoint(1, {"by": "first"})
    stale.deliver()
    second = claim(after=first)
    current = context(second)
    current.restore()
    current.checkpoint(2, {"by": "second"})
    current.deliver()

    for step in (2, 3, 4):
        try:
            stale.checkpoint(step, {"by": "stale"})
        except StaleAttempt:
            break
    with pytest.raises(StaleAttempt):
        stale.deliver()

    assert stale.should_stop
    restored = context(claim(after=second)).restore()
    assert restored is not None
    assert restored.state["by"] == "second"


def test_an_attempt_that_freezes_while_it_tidies_up_leaves_its_successors_checkpoints_alone(
    db: Database, claim: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = claim()
    ctx = context(first)
    for step in (1, 2, 3):
        ctx.checkpoint(step, {"x": step})
    ctx.deliver()
    written = []
    listed = ctx._shelf.all

    def list_after_a_long_time() -> list[Kept]:
        """Frozen just before it looks which folders may go; meanwhile another attempt begins, and gets further."""
        second = claim(after=first)
        successor = context(second)
        restored = successor.restore()
        assert restored is not None
        written.extend(successor.checkpoint(step, {"x": step}) for step in (5, 6))
        successor.deliver()
        return listed()

    monkeypatch.setattr(ctx._shelf, "all", list_after_a_long_time)
    ctx.checkpoint(4, {"x": 4})
    ctx.deliver()

    for path in written:
        assert checkpoint.read(path).state["x"] in (5, 6)


def test_two_attempts_may_tidy_up_at_once(tmp_path: Path) -> None:
    kept = Shelf(tmp_path).save(1, {"x": 1})
    remove(kept)
    remove(kept)
    assert Shelf(tmp_path).all() == []


def test_a_checkpoint_that_changed_on_disk_refuses_to_resume(claim: Callable[..., Task]) -> None:
    first = claim()
    ctx = context(first)
    path = ctx.checkpoint(1, {"step": 1})
    ctx.deliver()
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["sampled"] = 99
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))

    with pytest.raises(ResumeError, match="manifest"):
        context(claim(after=first)).restore()


def test_a_checkpoint_that_is_not_here_refuses_to_resume(claim: Callable[..., Task]) -> None:
    first = claim()
    ctx = context(first)
    path = ctx.checkpoint(1, {"step": 1})
    ctx.deliver()
    shutil.rmtree(path)

    with pytest.raises(ResumeError, match="RLX_HOME"):
        context(claim(after=first)).restore()


def test_secrets_are_resolved_in_the_process_that_needs_them(
    claim: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = claim(config={"model": {"token": "${env:RLX_TEST_SECRET}"}})
    with pytest.raises(SpecError, match="RLX_TEST_SECRET"):
        context(task)
    monkeypatch.setenv("RLX_TEST_SECRET", "hush")
    assert context(task).config["model"]["token"] == "hush"
    assert b"hush" not in task.path.read_bytes()
