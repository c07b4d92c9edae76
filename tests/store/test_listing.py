from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from engine.errors import Cause
from engine.store import evaluations, listing, runs, stages
from engine.store.listing import RunSummary
from engine.store.session import Database
from engine.store.stages import Claimed, Outcome
from engine.store.tables import METADATA
from engine.store.transitions import StageStatus
from tests.store.walk import Clock, Queue


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
    functions_hash: str = ""
    cost: dict[str, float] = field(default_factory=dict)


def _evaluate(queue: Queue, claimed: Claimed, *made: Made) -> None:
    for one in made:
        with queue.db.write() as session:
            evaluations.record(
                session,
                run_id=claimed.run_id,
                stage_id=claimed.stage_id,
                number=claimed.number,
                evaluation=one,
                now=queue.clock(),
            )


def _only(db: Database) -> RunSummary:
    with db.read() as session:
        (summary,) = runs.listing(session)
    return summary


def test_newest_first_and_as_many_as_asked_for(db: Database, queue: Queue, clock: Clock) -> None:
    for _ in range(3):
        queue.submit()
        clock.advance(1)
    with db.read() as session:
        assert [row.handle for row in runs.listing(session)] == ["best-lang-3", "best-lang-2", "best-lang-1"]
        assert [row.handle for row in runs.listing(session, limit=2)] == ["best-lang-3", "best-lang-2"]


@pytest.mark.parametrize("tag", ['say "night"', "night%", "nüit", "night", "1"])
def test_a_tag_is_the_whole_tag(db: Database, queue: Queue, tag: str) -> None:
    made = queue.submit(tags=["other", tag])
    queue.submit(tags=["nigh", "tonight", "11", 'say \\"night\\"', "n"])
    queue.submit()
    with db.read() as session:
        assert [row.id for row in runs.listing(session, tag=tag)] == [made.id]
        assert runs.listing(session, tag="absent") == []


def test_filters_by_name_status_and_tag(db: Database, queue: Queue, clock: Clock) -> None:
    queue.submit(name="best_lang", tags=["night"])
    clock.advance(1)
    stopped = queue.submit(name="qa", tags=["night", "big"])
    queue.stop(stopped)
    with db.read() as session:

        def handles(**filters: object) -> list[str]:
            return [row.handle for row in runs.listing(session, **filters)]  # type: ignore[arg-type]

        assert handles(name="best_lang") == handles(name="best-lang") == ["best-lang-1"]
        assert handles(status="cancelled") == ["qa-1"]
        assert handles(status=["queued", "cancelled"]) == ["qa-1", "best-lang-1"]
        assert handles(tag="night") == ["qa-1", "best-lang-1"]
        assert handles(tag="night", limit=1) == ["qa-1"]
        assert handles(tag="big") == ["qa-1"]
        assert handles(tag="bi") == []


def test_progress_is_over_all_stages(db: Database, queue: Queue, clock: Clock) -> None:
    run = queue.submit("a", "b<a", "c<b", "d<c")
    assert (_only(db).progress, _only(db).stage) == (0.0, "a")
    queue.finish(queue.claim(run, "a"))
    claimed = queue.claim(run, "b")
    with db.write() as session:
        stages.progress(session, claimed.stage_id, 1, done=15, total=60, note="iteration 15", now=clock())
    summary = _only(db)
    assert (summary.stages, summary.stages_done, summary.stage, summary.note) == (4, 1, "b", "iteration 15")
    assert summary.progress == pytest.approx((1 + 0.25) / 4)


def test_a_failure_is_what_one_wants_to_see(db: Database, queue: Queue) -> None:
    run = queue.submit("a", "b", "c<b")
    queue.claim(run, "a")
    queue.finish(queue.claim(run, "b"), Outcome.failed(Cause.REWARD_ERROR, "score_fn raised"))
    summary = _only(db)
    assert (summary.stage, summary.cause, summary.error) == ("b", "reward_error", "score_fn raised")


def test_scores_are_the_first_the_best_and_the_last_mean(db: Database, queue: Queue) -> None:
    claimed = queue.claim(queue.submit())
    _evaluate(
        queue,
        claimed,
        *(Made(step, (Item(0, (score, score)), Item(1, (0.0,)))) for step, score in ((0, 0.2), (10, 0.8), (20, 0.6))),
        Made(10, (Item(0, (9.0,)),), metric="score/generator"),
        Made(10, (Item(0, (9.0,)),), split="heldout"),
    )
    summary = _only(db)
    # The mean over items of each item's mean: (score + 0) / 2.
    assert (summary.score_first, summary.score_best, summary.score_last) == pytest.approx((0.1, 0.4, 0.3))
    assert summary.score_split == "train"


@pytest.mark.parametrize(
    ("metrics", "leading"), [(("logp", "accuracy", "score"), 3.0), (("logp", "accuracy"), 2.0), (("gap", "logp"), 2.0)]
)
def test_where_nothing_is_scored_another_metric_stands_for_the_run(
    db: Database, queue: Queue, metrics: tuple[str, ...], leading: float
) -> None:
    claimed = queue.claim(queue.submit())
    _evaluate(
        queue, claimed, *(Made(0, (Item(0, (float(n),)),), metric=metric) for n, metric in enumerate(metrics, start=1))
    )
    assert _only(db).score_last == leading


def test_without_evaluations_there_is_no_score(db: Database, queue: Queue) -> None:
    queue.submit()
    summary = _only(db)
    assert (summary.score_first, summary.score_best, summary.score_last, summary.score_split) == (None,) * 4


def test_the_columns_and_states_spelled_out_here_are_the_stores() -> None:
    for listed in (listing.RUNS, listing.SPECS, listing.STAGES, listing.EVALUATIONS):
        stored = METADATA.tables[listed.name]
        for column in listed.c:
            assert type(column.type) is type(stored.c[column.name].type), f"{listed.name}.{column.name}"
    assert {listing.SUCCEEDED, *listing.BY_INTEREST} == {str(status) for status in StageStatus}


def test_looking_without_objects_finds_the_same(db: Database, queue: Queue) -> None:
    queue.finish(queue.claim(queue.submit("a", "b", tags=["night"]), "a"))
    with db.look() as connection:
        found = listing.listing(connection, tag="night")
    assert found == [_only(db)]
    assert found[0].stages_done == 1


def test_a_look_can_change_nothing(db: Database, queue: Queue) -> None:
    queue.submit()
    with pytest.raises(DBAPIError), db.look() as connection:
        connection.execute(text("DELETE FROM stages"))


def test_the_number_of_queries_does_not_grow_with_the_runs(db: Database, queue: Queue) -> None:
    def queries() -> int:
        seen: list[str] = []

        def note(_c: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.lstrip().upper().startswith("SELECT"):
                seen.append(statement)

        event.listen(db.engine, "before_cursor_execute", note)
        try:
            with db.read() as session:
                runs.listing(session)
        finally:
            event.remove(db.engine, "before_cursor_execute", note)
        return len(seen)

    queue.submit()
    one = queries()
    for n in range(9):
        queue.submit(salt=str(n))
    assert queries() == one == 3
