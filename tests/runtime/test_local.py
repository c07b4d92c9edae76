"""The context without a store, and the shelf of checkpoints behind it."""

from pathlib import Path

import pytest

from engine.errors import ResumeError, SpecError
from engine.runtime import checkpoint
from engine.runtime.context import Evaluation, ItemScore, Sample, StageContext
from engine.runtime.local import LocalContext
from engine.runtime.shelf import Shelf


@pytest.fixture
def ctx(tmp_path: Path) -> LocalContext:
    return LocalContext({"lr": 0.1}, 3, tmp_path / "out")


def test_it_is_a_stage_context(ctx: LocalContext) -> None:
    context: StageContext = ctx
    assert context.config["lr"] == 0.1
    assert context.output_dir.is_dir()
    assert context.should_stop is False


def test_reports_are_kept_in_order(ctx: LocalContext) -> None:
    evaluation = Evaluation(1, "score", [ItemScore(0, (1.0,))])
    ctx.log(1, {"loss": 2.0}, lr=0.5)
    ctx.log(2, loss=1.0)
    ctx.log(2, loss=1.5)
    ctx.sample(Sample(1, "a"), Sample(1, "b"))
    ctx.evaluation(evaluation)
    ctx.progress(1, 4, "warming up")

    assert ctx.curve("loss") == [(1, 2.0), (2, 1.5)]
    assert ctx.curve("lr") == [(1, 0.5)]
    assert [sample.text for sample in ctx.samples] == ["a", "b"]
    assert ctx.evaluations == [evaluation]
    assert [(r.done, r.total, r.note) for r in ctx.reports] == [(1, 4, "warming up")]


def test_same_seed_and_name_draw_the_same_numbers(tmp_path: Path) -> None:
    def draw(seed: int, name: str) -> float:
        return float(LocalContext({}, seed, tmp_path / "out", name=name).rng.random())

    assert draw(1, "train") == draw(1, "train")
    assert len({draw(1, "train"), draw(2, "train"), draw(1, "evaluate")}) == 3


def test_restoring_gives_the_newest_state(ctx: LocalContext, tmp_path: Path) -> None:
    assert ctx.restore() is None
    ctx.checkpoint(1, {"step": 1})
    ctx.checkpoint(10, {"step": 10})
    ctx.checkpoint(9, {"step": 9})

    restored = LocalContext({}, 3, tmp_path / "out").restore()
    assert restored is not None
    assert (restored.step, restored.state["step"]) == (10, 10)


def test_the_newest_two_and_the_best_are_kept(ctx: LocalContext) -> None:
    for step in range(1, 7):
        ctx.checkpoint(step, {}, labels=("latest", "best") if step in (1, 2) else ("latest",))

    best = ctx.labelled("best")
    assert best is not None
    assert best.name == "step-2"
    assert sorted(path.name for path in best.parent.iterdir()) == ["step-2", "step-5", "step-6"]


def test_a_damaged_newest_checkpoint_is_not_passed_over(ctx: LocalContext) -> None:
    ctx.checkpoint(1, {"a": 1})
    newest = ctx.checkpoint(2, {"a": 2})
    (newest / checkpoint.STATE).write_text("{}")

    with pytest.raises(ResumeError, match="damaged"):
        ctx.restore()


def test_asking_for_functions_that_were_not_given_says_so(ctx: LocalContext) -> None:
    with pytest.raises(SpecError, match="functions"):
        _ = ctx.functions


def test_an_attempt_that_wakes_up_late_overwrites_nothing(tmp_path: Path) -> None:
    stale, current = Shelf(tmp_path, attempt=1), Shelf(tmp_path, attempt=2)
    stale.save(1, {"by": "stale"})
    current.save(2, {"by": "current"})
    stale.save(2, {"by": "stale"})

    newest = current.newest()
    assert newest is not None
    assert checkpoint.read(newest.path).state["by"] == "current"


def test_drafts_of_a_crash_do_not_count(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    kept = shelf.save(1, {})
    kept.path.with_name(".step-2.abcd").mkdir()

    assert [one.path for one in shelf.all()] == [kept.path]
