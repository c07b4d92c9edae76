from __future__ import annotations

from itertools import product

import pytest

from engine.store.session import Database
from engine.store.tables import Attempt, Run, Stage
from engine.store.transitions import ALLOWED, ENDED, AttemptStatus, RunStatus, StageStatus, move, move_all
from tests.store.walk import Queue

TYPES = {Run: RunStatus, Stage: StageStatus, Attempt: AttemptStatus}


@pytest.mark.parametrize("row_type", TYPES)
def test_every_state_has_its_line_and_leads_to_states_of_its_own_kind(row_type: type) -> None:
    statuses = set(TYPES[row_type])
    assert set(ALLOWED[row_type]) == statuses
    assert all(targets <= statuses for targets in ALLOWED[row_type].values())


@pytest.mark.parametrize("row_type", TYPES)
def test_every_state_can_be_reached_and_left_for_an_end(row_type: type) -> None:
    table = ALLOWED[row_type]
    first = next(iter(TYPES[row_type]))
    assert _reachable(table, first) == set(TYPES[row_type])
    for status in TYPES[row_type]:
        assert (_reachable(table, status) & ENDED[row_type]) or status in ENDED[row_type]


def test_success_is_for_ever_and_an_attempt_ends_once() -> None:
    assert not ALLOWED[Run][RunStatus.SUCCEEDED]
    assert not ALLOWED[Stage][StageStatus.SUCCEEDED]
    assert all(not ALLOWED[Attempt][status] for status in ENDED[Attempt])


def test_a_move_happens_only_from_where_it_was_expected(db: Database, queue: Queue) -> None:
    run = queue.submit()
    with db.write() as session:
        assert not move(session, Run, run.id, RunStatus.FAILED, expect=[RunStatus.RUNNING])
        assert move(session, Run, run.id, RunStatus.RUNNING, expect=[RunStatus.QUEUED])
        assert not move(session, Run, run.id, RunStatus.RUNNING, expect=[RunStatus.QUEUED])
    assert queue.status(run) == "running"


def test_many_are_moved_with_values_of_their_own_and_the_others_stay(db: Database, queue: Queue) -> None:
    run = queue.submit("a", "b", "c<a")
    ids = {name: queue.stage(run, name) for name in "abc"}
    with db.write() as session:
        rows = {stage_id: {"note": name} for name, stage_id in ids.items()}
        move_all(session, Stage, StageStatus.CANCELLED, expect=[StageStatus.READY], rows=rows)
        move_all(session, Stage, StageStatus.READY, expect=[StageStatus.WAITING], rows={})
        with pytest.raises(ValueError, match="never moves"):
            move_all(session, Stage, StageStatus.RUNNING, expect=[StageStatus.WAITING], rows=rows)
    assert queue.statuses(run) == {"a": "cancelled", "b": "cancelled", "c": "waiting"}
    assert [stage.note for stage in queue.stages(run)] == ["a", "b", ""]


def test_a_move_that_the_table_does_not_have_is_a_bug(db: Database, queue: Queue) -> None:
    run = queue.submit()
    with db.write() as session:
        for before, after in product(RunStatus, RunStatus):
            if after not in ALLOWED[Run][before]:
                with pytest.raises(ValueError, match="never moves"):
                    move(session, Run, run.id, after, expect=[before])
    assert queue.status(run) == "queued"


def _reachable(table: dict, first: str) -> set:
    seen, todo = {first}, [first]
    while todo:
        for status in table[todo.pop()] - seen:
            seen.add(status)
            todo.append(status)
    return seen
