"""Checkpoints, samples and evaluations: recorded behind the fence, found by name, there once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from engine.compare.bootstrap import mean_interval
from engine.errors import DataError, NotFound, StaleAttempt
from engine.store import checkpoints, evaluations, runs, samples
from engine.store.session import Database
from engine.store.stages import Claimed
from tests.store.walk import Clock, Queue


@dataclass(frozen=True)
class Text:
    step: int
    text: str
    score: float | None = None
    item: int | None = None
    split: str = "train"
    kind: str = "episode"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    item: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Made:
    step: int
    items: tuple[Item, ...]
    metric: str = "score"
    split: str = "train"
    functions_hash: str = "f"
    cost: dict[str, float] = field(default_factory=dict)


def _checkpoint(queue: Queue, claimed: Claimed, step: int, *labels: str, uri: str = "/c") -> None:
    with queue.db.write() as session:
        checkpoints.record(
            session,
            run_id=claimed.run_id,
            stage_id=claimed.stage_id,
            number=claimed.number,
            step=step,
            labels=labels,
            uri=f"{uri}/{step}",
            sha256="0" * 64,
            size=10,
            now=queue.clock(),
        )


def _sample(queue: Queue, claimed: Claimed, first: int, *texts: Text) -> None:
    with queue.db.write() as session:
        samples.add(
            session,
            run_id=claimed.run_id,
            stage_id=claimed.stage_id,
            number=claimed.number,
            first=first,
            samples=texts,
        )


def _evaluate(queue: Queue, claimed: Claimed, made: Made) -> None:
    with queue.db.write() as session:
        evaluations.record(
            session,
            run_id=claimed.run_id,
            stage_id=claimed.stage_id,
            number=claimed.number,
            evaluation=made,
            now=queue.clock(),
        )


def test_labels_move_to_the_newest_that_claims_them(db: Database, queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    _checkpoint(queue, claimed, 10, "latest", "best")
    _checkpoint(queue, claimed, 20, "latest")
    _checkpoint(queue, claimed, 30, "latest", "best")
    _checkpoint(queue, claimed, 40, "latest")
    with db.read() as session:
        found = {name: checkpoints.find(session, run, name).step for name in ("best", "latest", "step-10")}
        labels = {checkpoint.step: checkpoint.labels for checkpoint in checkpoints.of_run(session, run.id)}
    assert found == {"best": 30, "latest": 40, "step-10": 10}
    assert labels == {10: [], 20: [], 30: ["best"], 40: ["latest"]}


def test_a_step_recorded_again_replaces_the_earlier(db: Database, queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    _checkpoint(queue, claimed, 10, "latest", uri="/old")
    _checkpoint(queue, claimed, 10, "latest", uri="/new")
    with db.read() as session:
        assert [(c.step, c.uri) for c in checkpoints.of_run(session, run.id)] == [(10, "/new/10")]


def test_the_last_stage_that_has_the_label_answers(db: Database, queue: Queue) -> None:
    run = queue.submit("model", "train<model")
    model = queue.claim(run, "model")
    _checkpoint(queue, model, 500, "latest")
    queue.finish(model)
    train = queue.claim(run, "train")
    with db.read() as session:
        assert checkpoints.find(session, run, "latest").step == 500
    _checkpoint(queue, train, 10, "latest")
    with db.read() as session:
        assert checkpoints.find(session, run, "latest").step == 10
        assert checkpoints.find(session, run, "step-500").stage_id == model.stage_id


def test_an_unknown_checkpoint_names_those_there_are(db: Database, queue: Queue) -> None:
    run = queue.submit()
    with db.read() as session, pytest.raises(NotFound, match="has none"):
        checkpoints.find(session, run, "best")
    _checkpoint(queue, queue.claim(run), 10, "latest")
    with db.read() as session, pytest.raises(NotFound, match="latest, step-10"):
        checkpoints.find(session, run, "best")


def test_what_retention_removed_is_forgotten(db: Database, queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    for step in (1, 2, 3):
        _checkpoint(queue, claimed, step)
    with db.write() as session:
        checkpoints.forget(session, stage_id=claimed.stage_id, number=1, steps=[1, 2])
    with db.read() as session:
        assert [checkpoint.step for checkpoint in checkpoints.of_run(session, run.id)] == [3]


def test_samples_delivered_twice_are_stored_once(db: Database, queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    texts = [Text(step, f"text {step}") for step in range(5)]
    _sample(queue, claimed, 0, *texts[:3])
    _sample(queue, claimed, 0, *texts[:3])
    _sample(queue, claimed, 2, *texts[2:])
    _sample(queue, claimed, 5)
    with db.read() as session:
        assert [sample.text for sample in samples.of_run(session, run.id)] == [f"text {n}" for n in (4, 3, 2, 1, 0)]
        assert samples.steps(session, run.id) == [0, 1, 2, 3, 4]


def test_any_generated_text_can_be_stored(db: Database, queue: Queue) -> None:
    run = queue.submit()
    steps = {"candidates": [{"text": "a\x00b", "q": float("inf"), "chosen": np.True_, "v": np.float32(0.5)}]}
    _sample(queue, queue.claim(run), 0, Text(1, "nul \x00 surrogate \udc80 snow ☃", float("nan"), data=steps))
    with db.read() as session:
        (sample,) = samples.of_run(session, run.id)
    assert sample.text.startswith("nul ␀ surrogate ")
    assert sample.text.endswith(" snow ☃")
    assert sample.score is None
    assert sample.data == {"candidates": [{"text": "a␀b", "q": None, "chosen": True, "v": 0.5}]}


def test_samples_are_read_in_pages_and_by_what_they_are(db: Database, queue: Queue) -> None:
    run = queue.submit()
    texts = [
        Text(step, f"{split}{item}@{step}", float(step), item, split)
        for step in (0, 10)
        for split in ("train", "heldout")
        for item in (0, 1)
    ]
    _sample(queue, queue.claim(run), 0, *texts)
    with db.read() as session:

        def read(**filters: Any) -> list[str]:
            return [sample.text for sample in samples.of_run(session, run.id, **filters)]

        assert read(step=0) == ["train0@0", "train1@0", "heldout0@0", "heldout1@0"]
        assert read(split="heldout", item=1) == ["heldout1@10", "heldout1@0"]
        assert read(limit=3, offset=3) == ["heldout1@10", "train0@0", "train1@0"]
        assert read(kind="other") == []


def test_what_is_sampled_again_after_a_resume_is_there_once(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    first = queue.claim(run)
    _sample(queue, first, 0, *(Text(n, f"1:{n}") for n in range(6)))  # its last checkpoint stood after 4 of them
    clock.advance(20)
    queue.expire()
    second = queue.claim(run)
    with db.write() as session:
        assert samples.rewind(session, stage_id=second.stage_id, number=2, attempt=1, sampled=4) == 2
    _sample(queue, second, 0, Text(4, "2:4"))
    with db.read() as session:
        assert [s.text for s in samples.of_run(session, run.id)] == ["2:4", "1:3", "1:2", "1:1", "1:0"]


def test_an_evaluations_mean_and_interval_are_those_of_a_comparison(db: Database, queue: Queue) -> None:
    rng = np.random.default_rng(5)
    scores = {item: tuple(float(x) for x in rng.random(4)) for item in range(7)}
    run = queue.submit()
    _evaluate(queue, queue.claim(run), Made(3, tuple(Item(i, s) for i, s in scores.items()), cost={"seconds": 2.0}))
    with db.read() as session:
        (found,) = evaluations.of_run(session, run.id)
    expected = mean_interval(scores)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (found.count, found.step, found.cost, found.functions_hash) == (28, 3, {"seconds": 2.0}, "f")
    assert [(item, tuple(values)) for item, values in found.items] == list(scores.items())


def test_one_item_alone_has_its_repeats_resampled(db: Database, queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    _evaluate(queue, claimed, Made(0, (Item(0, (0.0, 1.0, 0.0, 1.0)),)))
    _evaluate(queue, claimed, Made(1, (Item(0, (1.0, 1.0)),)))
    with db.read() as session:
        wide, narrow = evaluations.of_run(session, run.id)
    assert wide.mean == 0.5
    assert wide.low < 0.25 < 0.75 < wide.high
    assert (narrow.low, narrow.mean, narrow.high) == (1.0, 1.0, 1.0)


def test_an_evaluation_made_again_replaces_the_earlier(db: Database, queue: Queue) -> None:
    run = queue.submit()
    claimed = queue.claim(run)
    for score in (0.0, 1.0):
        _evaluate(queue, claimed, Made(10, (Item(0, (score,)),)))
        _evaluate(queue, claimed, Made(10, (Item(0, (score,)),), split="heldout"))
    with db.read() as session:
        assert [(e.split, e.mean) for e in evaluations.of_run(session, run.id)] == [("train", 1.0), ("heldout", 1.0)]
        assert len(evaluations.of_run(session, run.id, split="heldout")) == 1
        assert evaluations.of_run(session, run.id, metric="score/generator") == []


@pytest.mark.parametrize("items", [(), (Item(0, ()),), (Item(0, (1.0, float("nan"))),)])
def test_an_evaluation_needs_finite_scores(queue: Queue, items: tuple[Item, ...]) -> None:
    claimed = queue.claim(queue.submit())
    with pytest.raises(DataError, match="finite"):
        _evaluate(queue, claimed, Made(0, items))


def test_a_stale_attempt_records_nothing(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit()
    stale = queue.claim(run)
    clock.advance(20)
    queue.expire()
    queue.claim(run)

    def forget(session: Session) -> None:
        checkpoints.forget(session, stage_id=stale.stage_id, number=1, steps=[1])

    def rewind(session: Session) -> None:
        samples.rewind(session, stage_id=stale.stage_id, number=1, attempt=0, sampled=0)

    def write(work: Callable[[Session], None]) -> None:
        with db.write() as session:
            work(session)

    for late in (
        lambda: _checkpoint(queue, stale, 1, "best"),
        lambda: _sample(queue, stale, 0, Text(0, "late")),
        lambda: _evaluate(queue, stale, Made(0, (Item(0, (1.0,)),))),
        lambda: write(forget),
        lambda: write(rewind),
    ):
        with pytest.raises(StaleAttempt):
            late()
    with db.read() as session:
        assert checkpoints.of_run(session, run.id) == []
        assert samples.of_run(session, run.id) == []
        assert evaluations.of_run(session, run.id) == []
        assert runs.listing(session)[0].score_last is None
