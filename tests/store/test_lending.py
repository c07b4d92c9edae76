"""One worker keeps its devices for a stage that is too large for what is free; a reservation lapses with its worker."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from engine.plan.stage import Needs, Plan, Resources, Stage
from engine.store import lending, runs, stages, workers
from engine.store.lending import KEPT_FOR_S, Lender, should_keep
from engine.store.queue import Waiting
from engine.store.session import Database
from engine.store.tables import RunId, StageId, WorkerId
from tests.store.walk import Clock

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def lender(number: int, used: int, *, gpus: int = 8, slots: int = 8, queue: str = "default") -> Lender:
    """Worker `number`, of whose GPUs so many are lent."""
    worker = WorkerId(UUID(int=number))
    return Lender(worker, f"w{number}", "h", frozenset({queue}), Needs(slots, gpus), {"ann": Needs(used, used)})


def large(gpus: int = 8, priority: int = 0, queue: str = "default") -> Waiting:
    return Waiting(StageId(uuid4()), uuid4(), "large", Needs(1, gpus), queue, priority)


def keepers(stage: Waiting, cluster: list[Lender]) -> list[str]:
    """Which workers say of themselves that they should keep."""
    return [it.name for it in cluster if should_keep(stage, it.worker_id, it.free, cluster)]


def test_the_worker_that_lacks_least_keeps_and_no_other() -> None:
    assert keepers(large(), [lender(1, 7), lender(2, 2), lender(3, 5)]) == ["w2"]
    assert keepers(large(), [lender(1, 2), lender(2, 2)]) == ["w1"]


@pytest.mark.parametrize(
    "unfit",
    [
        lender(2, 1, gpus=4),
        lender(2, 1, queue="other"),
        replace(lender(2, 1), open=False),
        replace(lender(2, 1), run_id=uuid4()),
        lender(2, 4, slots=4),
    ],
    ids=["too small", "another queue", "draining", "for another run", "no free slot"],
)
def test_a_worker_that_cannot_take_it_is_not_waited_for(unfit: Lender) -> None:
    assert keepers(large(), [lender(1, 7), unfit]) == ["w1"]


def test_one_worker_at_a_time_keeps_so_that_the_others_go_on() -> None:
    first = large()
    cluster = [replace(lender(1, 2), keeps=first), lender(2, 3), lender(3, 4)]
    assert keepers(first, cluster) == ["w1"]
    assert keepers(large(), cluster) == []


def test_a_worker_that_could_not_stand_in_keeps_for_a_stage_of_its_own() -> None:
    only_on_one = large(gpus=16)
    cluster = [replace(lender(1, 2, gpus=16), keeps=only_on_one), lender(2, 3)]
    assert keepers(large(), cluster) == ["w2"]


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    cluster = [replace(lender(1, 2), keeps=large()), lender(2, 3)]
    assert keepers(large(priority=1), cluster) == ["w1"]
    assert keepers(large(priority=-1), cluster) == []


def test_another_takes_over_only_when_it_lacks_strictly_less() -> None:
    stage = large()
    keeping = replace(lender(1, 3), keeps=stage)
    assert keepers(stage, [keeping, lender(2, 3)]) == ["w1"]
    assert keepers(stage, [keeping, lender(2, 2)]) == ["w1", "w2"]


def test_what_is_lent_but_not_yet_leased_counts() -> None:
    cluster = [lender(1, 1), lender(2, 3)]
    assert not should_keep(large(), cluster[0].worker_id, Needs(3, 3), cluster)


def test_nothing_is_kept_for_one_device() -> None:
    assert keepers(large(gpus=1), [lender(1, 8, slots=9)]) == []


def test_a_reservation_lapses_moves_and_ends_with_its_stage(db: Database, clock: Clock) -> None:
    plan = Plan("kept", 0, (Stage("big", "test", "tests:stage", (), resources=Resources(gpus=2)),))
    with db.write() as session:
        given = {"pid": 1, "pid_started": None, "queues": ["default"], "slots": 2, "gpus": [0, 1], "now": clock()}
        one, two = (workers.register(session, name=name, host=name, **given) for name in ("one", "two"))  # type: ignore[arg-type]
        run = runs.submit(session, plan, runs.Submission(source="", resolved={}, user="ann"), now=clock())
        stage_id = StageId(stages.for_run(session, RunId(run.id))[0].id)

    def kept() -> dict[str, str]:
        with db.read() as session:
            return {it.name: it.keeps.name for it in lending.lenders(session, clock()) if it.keeps}

    def keep(worker: WorkerId, stage: StageId | None) -> None:
        with db.write() as session:
            lending.keep(session, worker, stage, now=clock())

    keep(one, stage_id)
    assert kept() == {"one": "big"}
    keep(two, stage_id)
    assert kept() == {"two": "big"}
    keep(one, None)
    assert kept() == {"two": "big"}
    clock.advance(KEPT_FOR_S + 1)
    with db.write() as session:
        for worker in (one, two):
            workers.heartbeat(session, worker, now=clock())
    assert kept() == {}
    keep(one, stage_id)
    assert kept() == {"one": "big"}
    with db.write() as session:
        stages.claim(session, stage_id, worker=two, devices=["slot:0", "gpu:0", "gpu:1"], now=clock(), lease_s=60)
    assert kept() == {}
    with db.read() as session:
        held = {it.name: (it.held, it.free) for it in lending.lenders(session, clock())}
    assert held == {"one": ({}, Needs(2, 2)), "two": ({"ann": Needs(1, 2)}, Needs(1, 0))}
