"""`cancel`, `resume` (as far as no worker is needed) and `logs` over a real store."""

from __future__ import annotations

from engine.store import queue, stages


def test_cancel_stops_what_waits_and_refuses_what_is_over(rlx, lab):
    lab.submit()
    cancelled = rlx("cancel", "best-lang-1")
    assert (cancelled.code, cancelled.out) == (0, "best-lang-1\n")
    assert "rlx resume best-lang-1" in cancelled.err
    assert rlx("show", "best-lang-1", "--json").data["status"] == "cancelled"

    again = rlx("cancel", "best-lang-1")
    assert again.code == 5
    assert again.out == ""
    assert "best-lang-1 (cancelled)" in again.err


def test_cancel_asks_a_running_stage_to_stop(rlx, lab):
    run = lab.submit()
    claimed = lab.training(run)
    assert rlx("cancel", "@last").code == 0
    assert rlx("show", "@last", "--json").data["status"] == "stopping"
    with lab.db.write() as session:
        assert stages.heartbeat(session, claimed, now=lab.now, lease_s=15) is stages.Signal.STOP


def test_cancel_says_how_long_a_checkpoint_may_take_and_the_shorter_time_counts(rlx, lab):
    run = lab.submit()
    lab.training(run)
    patience = []
    for grace in ("1m", "10s", "5m"):
        assert f"stops within {grace}" in rlx("cancel", "@last", "--grace", grace).err
        with lab.db.read() as session:
            patience.append(queue.stop_requested(session, run.id))
    assert patience == [60, 10, 10]

    wrong = rlx("cancel", "@last", "--grace", "soon")
    assert wrong.code == 2
    assert "--grace soon: 'soon' is not a duration" in wrong.err


def test_a_run_that_succeeded_is_not_resumed(rlx, lab):
    lab.succeeded()
    answer = rlx("resume", "best-lang-1")
    assert answer.code == 5
    assert "succeeded" in answer.err


def test_a_run_in_good_hands_is_not_resumed(rlx, lab, monkeypatch):
    lab.training(lab.submit())
    monkeypatch.setattr("engine.clock.utc_now", lambda: lab.now)
    monkeypatch.setattr("engine.store.processes.provably_gone", lambda *_: False)
    answer = rlx("resume", "best-lang-1")
    assert answer.code == 5
    assert "rlx watch best-lang-1" in answer.err


def test_logs_come_from_the_file_or_from_the_tail(rlx, lab, tmp_path):
    claimed = lab.training(lab.submit())
    log = tmp_path / "train.log"
    log.write_text("one\ntwo\x1b[2J\nthree\n")
    with lab.db.write() as session:
        stages.start(session, claimed, pid=1, log_path=str(log))

    assert rlx("logs", "@last", "--stage", "train").out == "one\ntwo\\x1b[2J\nthree\n"
    assert rlx("logs", "@last", "--stage", "train", "-n", "1").out == "three\n"
    (row,) = rlx("logs", "@last", "--stage", "train", "--json").data
    assert (row["stage"], row["number"], row["text"]) == ("train", 1, "one\ntwo\x1b[2J\nthree\n")

    lab.finish(claimed, stages.Outcome.failed(stages_cause(), "boom", log_tail="the tail"))
    log.unlink()
    assert rlx("logs", "@last", "--stage", "train").out == "the tail\n"


def stages_cause():
    from engine.errors import Cause

    return Cause.DATA_ERROR


def test_logs_of_nothing_are_not_found(rlx, lab):
    lab.submit()
    answer = rlx("logs", "@last")
    assert answer.code == 3
    assert "no log" in answer.err


def test_following_ends_with_the_run(rlx, lab, tmp_path):
    claimed = lab.training(lab.submit())
    log = tmp_path / "train.log"
    log.write_text("one\nlast")
    with lab.db.write() as session:
        stages.start(session, claimed, pid=1, log_path=str(log))
    lab.finish(claimed)
    assert rlx("logs", "@last", "-f", "--stage", "train").out.splitlines()[1:] == ["one", "last"]


def test_watching_a_finished_run_tells_its_outcome(rlx, lab):
    lab.succeeded()
    answer = rlx("watch", "best-lang-1")
    assert answer.code == 0
    assert "untrained" in answer.err
    assert "rlx samples best-lang-1" in answer.err
    assert answer.out == ""

    claimed = lab.training(lab.submit())
    lab.finish(claimed, stages.Outcome.failed(stages_cause(), "boom", log_tail="its last words"))
    failed = rlx("watch")
    assert failed.code == 1
    assert "data_error in stage train" in failed.err
    assert "its last words" in failed.err
