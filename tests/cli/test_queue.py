"""What waits and why, who lends what, and who was told to leave, as the command line tells it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from engine.cli import output
from engine.plan.stage import Plan, Resources, Stage
from engine.store import lending, runs, stages, workers
from engine.store.tables import Run, RunId, StageId, WorkerId
from engine.store.tables import Stage as Row


@pytest.fixture(autouse=True)
def _now(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.clock.utc_now", lambda: lab.now)


@pytest.fixture
def enter(lab) -> Callable[..., WorkerId]:
    def enter(name: str, *, gpus: int = 0, slots: int = 2, queues: tuple[str, ...] = ("default",)) -> WorkerId:
        with lab.db.write() as session:
            return workers.register(
                session,
                name=name,
                host=f"host-of-{name}",
                pid=1,
                pid_started=None,
                queues=queues,
                slots=slots,
                gpus=range(gpus),
                now=lab.now,
            )

    return enter


@pytest.fixture
def submit(lab) -> Callable[..., Run]:
    def submit(name: str, *, priority: int = 0, user: str = "ann", count: int = 1, **resources: Any) -> Run:
        plan = tuple(
            Stage(f"s{index}", "test", "t:t", (), extra={"of": name}, resources=Resources(**resources))
            for index in range(count)
        )
        with lab.db.write() as session:
            return runs.submit(
                session,
                Plan(name, 0, plan),
                runs.Submission(source="", resolved={}, priority=priority, user=user, no_cache=True),
                now=lab.tick(),
            )

    return submit


@pytest.fixture
def start(lab) -> Callable[..., None]:
    def start(run: Run, worker: WorkerId, *devices: str) -> None:
        with lab.db.write() as session:
            stage = stages.for_run(session, RunId(run.id))[0]
            assert stages.claim(session, StageId(stage.id), worker=worker, devices=devices, now=lab.now, lease_s=60)

    return start


def whys(rlx) -> dict[str, str]:
    return {row["run"]: row["why"] for row in rlx("queue", "--json").data}


def test_an_empty_queue_says_so(rlx) -> None:
    answer = rlx("queue")
    assert (answer.code, answer.out) == (0, "")
    assert "Nothing waits" in answer.err
    assert rlx("queue", "--json").data == []


def test_without_a_worker_or_one_of_the_queue_that_is_why(rlx, submit, enter) -> None:
    submit("a")
    assert whys(rlx) == {"a-1": "no worker is alive: `rlx worker` starts one"}
    enter("w1", queues=("other",))
    assert whys(rlx) == {"a-1": "no worker serves queue default"}


def test_what_a_stage_lacks_is_named_with_the_worker_that_is_closest(rlx, submit, enter, start) -> None:
    w1, w2 = enter("w1", gpus=8, slots=8), enter("w2", gpus=4)
    start(submit("r", gpus=6), w1, "slot:0", *(f"gpu:{gpu}" for gpu in range(6)))
    start(submit("q", gpus=3), w2, "slot:0", "gpu:0", "gpu:1", "gpu:2")
    submit("large", gpus=4)
    submit("huge", gpus=16)
    submit("small", gpus=2)
    submit("first", priority=3, gpus=2)

    rows = {row["run"]: row for row in rlx("queue", "--json").data}
    assert rows["first-1"]["why"] == "next: w1 has room for it"
    assert rows["large-1"]["why"] == "waits for 4 GPUs: w1 has 2 free of 8, behind 1 stage of higher priority"
    assert rows["huge-1"]["why"] == "needs 16 GPUs and 1 slot; w1, the largest worker, lends 8 GPUs and 8 slots"
    assert rows["small-1"]["why"] == "behind 1 stage of higher priority"
    assert [row["position"] for row in rows.values()] == [1, 2, 3, 4]
    assert (rows["large-1"]["reason"], rows["large-1"]["gpus"], rows["large-1"]["user"]) == ("devices", 4, "ann")
    assert rows["large-1"]["seconds"] == 3.0


def test_a_reservation_is_told_to_both_sides(rlx, lab, submit, enter, start) -> None:
    w1 = enter("w1", gpus=4, slots=8)
    start(submit("r"), w1, "slot:0", "gpu:0")
    large = submit("large", gpus=4)
    submit("small", gpus=1, priority=1)
    with lab.db.write() as session:
        lending.keep(session, w1, StageId(stages.for_run(session, RunId(large.id))[0].id), now=lab.now)
    assert whys(rlx) == {
        "large-1": "waits for 4 GPUs: w1 keeps 3 free of 4, behind 1 stage of higher priority",
        "small-1": "w1 keeps its free devices for s0 (4 GPUs and 1 slot)",
    }


def test_a_stage_that_backs_off_comes_last_and_says_until_when(rlx, lab, submit, enter) -> None:
    enter("w1")
    run = submit("a")
    submit("b")
    with lab.db.write() as session:
        session.execute(
            update(Row)
            .where(Row.run_id == run.id)
            .values(not_before=lab.now.replace(hour=13, minute=5, second=0), cause="oom")
        )
    rows = rlx("queue", "--json").data
    assert [(row["run"], row["position"]) for row in rows] == [("b-1", 1), ("a-1", None)]
    assert rows[1]["why"] == "backing off until 13:05:00 UTC after oom"


def test_a_drained_worker_takes_nothing(rlx, submit, enter) -> None:
    submit("a")
    enter("w1")
    told = rlx("worker", "drain", "w1")
    assert (told.code, told.out) == (0, "w1\n")
    assert "checkpoint" in told.err
    assert whys(rlx) == {"a-1": "every worker of queue default is draining"}
    (row,) = rlx("worker", "ls", "--json").data
    assert row["status"] == "draining"


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        (("drain",), 2, "--all"),
        (("drain", "w1", "--all"), 2, "--all"),
        (("drain", "nobody"), 3, "Alive: w1"),
        (("--queues", " , "), 2, "at least one queue"),
        (("--gpus", "0-"), 2, "range such as 0-3"),
        (("--slots", "0"), 2, "--slots"),
    ],
)
def test_lines_that_make_no_sense_say_what_to_do(rlx, enter, line, code, says) -> None:
    enter("w1")
    answer = rlx("worker", *line)
    assert answer.code == code
    assert says in answer.err


def test_drain_waits_until_the_worker_has_left(rlx, lab, enter, monkeypatch) -> None:
    w1 = enter("w1")

    def leave(seconds: float) -> None:
        with lab.db.write() as session:
            workers.mark_gone(session, w1)

    monkeypatch.setattr("time.sleep", leave)
    answer = rlx("worker", "drain", "--all", "--after-current", "--wait")
    assert (answer.code, answer.out) == (0, "w1\n")
    assert "w1 has left" in answer.err


def test_worker_ls_shows_what_is_used_and_by_what(rlx, lab, submit, enter, start) -> None:
    w1 = enter("w1", gpus=8, slots=4)
    start(submit("a", gpus=2), w1, "slot:0", "gpu:3", "gpu:5")
    lab.tick(7)
    (row,) = rlx("worker", "ls", "--json").data
    assert (row["slots"], row["slots_used"], row["slots_free"]) == (4, 1, 3)
    assert (row["gpus_used"], row["gpus_free"]) == ([3, 5], [0, 1, 2, 4, 6, 7])
    assert [(it["run"], it["stage"], it["devices"]) for it in row["running"]] == [
        ("a-1", "s0", ["slot:0", "gpu:3", "gpu:5"])
    ]
    shown = rlx("worker", "ls").out
    assert "1/4" in shown
    assert "2/8" in shown
    assert "a-1/s0" in shown


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("line", [("queue",), ("worker", "ls")])
def test_tables_fit_the_window(rlx, submit, enter, start, monkeypatch, width, line) -> None:
    w1 = enter("a-worker-with-a-rather-long-name", gpus=8, slots=8, queues=("default", "a-queue-for-evaluations"))
    start(submit("twenty_questions_with_a_long_name", gpus=6), w1, "slot:0", *(f"gpu:{gpu}" for gpu in range(6)))
    submit("another_experiment_with_a_long_name", gpus=8, count=3, user="somebody")
    submit("first", gpus=8, priority=10)
    submit("evaluation", queue="a-queue-for-evaluations", gpus=99)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(output.shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))

    lines = rlx(*line).out.splitlines()

    assert all(len(text) <= width for text in lines)
    title = "WHY" if line == ("queue",) else "RUNS"
    assert title in lines[0]


def test_a_long_queue_is_cut_and_says_so(rlx, submit) -> None:
    submit("a", count=5)
    answer = rlx("queue", "--limit", "2")
    assert len(answer.out.splitlines()) == 3
    assert "2 of 5 shown" in answer.err
    assert len(rlx("queue", "default", "-n", "3", "--json").data) == 3
    assert rlx("queue", "other", "--json").data == []
