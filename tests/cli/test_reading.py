"""`ls`, `show`, `samples`, `specs`, `worker ls`: tables and JSON from the same rows, over a real store."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from engine.cli.reading import Status
from engine.errors import Cause
from engine.runtime.context import Sample
from engine.store import stages
from engine.store.artifact_store import StoredArtifact
from engine.store.stages import Outcome
from engine.store.transitions import RunStatus


def test_nothing_was_submitted_and_looking_makes_nothing(rlx, home):
    assert rlx("ls", "--json").data == []
    assert "rlx submit" in rlx("ls").err
    assert rlx("specs", "--json").data == []
    assert rlx("worker", "ls", "--json").data == []
    shown = rlx("show", "@last")
    assert shown.code == 3
    assert "rlx submit" in shown.err
    assert list(home.home.iterdir()) == []


def test_runs_are_listed_newest_first(rlx, lab):
    lab.succeeded(tags=["paper"])
    lab.submit("twenty_questions", seed=7)

    rows = rlx("ls", "--json").data
    assert [row["handle"] for row in rows] == ["twenty-questions-1", "best-lang-1"]
    assert [row["status"] for row in rows] == ["queued", "succeeded"]
    assert [rows[1][key] for key in ("score_first", "score_best", "score_last", "progress")] == [0.1, 0.9, 0.9, 1.0]
    assert rows[0]["seed"] == 7

    table = rlx("ls").out.splitlines()
    assert table[0].split() == ["RUN", "STATUS", "DONE", "UNTRAINED", "BEST", "LAST", "TOOK", "SUBMITTED", "TAGS"]
    assert table[2].split()[:6] == ["best-lang-1", "succeeded", "100%", "0.1", "0.9", "0.9"]


def test_runs_are_filtered(rlx, lab):
    lab.succeeded(tags=["paper"])
    lab.submit("twenty_questions")

    def handles(*line: str) -> list[str]:
        return [row["handle"] for row in rlx("ls", "--json", *line).data]

    assert handles("best_lang") == handles("best-lang") == handles("--status", "succeeded") == ["best-lang-1"]
    assert handles("--tag", "paper") == ["best-lang-1"]
    assert handles("--limit", "1") == ["twenty-questions-1"]
    assert handles("--status", "failed") == []
    assert rlx("ls", "--status", "lost").code == 2


def test_the_statuses_offered_are_the_stores():
    assert set(get_args(Status)) == {str(status) for status in RunStatus}


def test_show_tells_scores_stages_and_checkpoints(rlx, lab):
    lab.succeeded(overrides=["seed=0"], notes="first try")

    data = rlx("show", "@last", "--json").data
    assert data["handle"] == "best-lang-1"
    assert data["failure"] is None
    assert [(stage["name"], stage["status"]) for stage in data["stages"]] == [
        ("model", "succeeded"),
        ("train", "succeeded"),
    ]
    (score,) = data["scores"]
    assert [score[key]["mean"] for key in ("first", "best", "last")] == [0.1, 0.9, 0.9]
    assert score["best"]["low"] <= 0.9 <= score["best"]["high"]
    assert data["checkpoints"][0]["labels"] == ["best", "latest"]

    text = rlx("show", "best-l").out
    assert "best-lang-1  succeeded" in text
    assert "0.100 [" in text
    assert "step-10" in text
    assert "first try" in text


def test_show_says_why_a_run_failed_and_what_to_do(rlx, lab):
    claimed = lab.training(lab.submit())
    lab.evaluate(claimed, 0, [0.0, 1.0])
    log = "\n".join(f"line {n}" for n in range(100)) + "\nTraceback\x1b[2J\nKeyError: 'x'"
    lab.finish(claimed, Outcome.failed(Cause.REWARD_ERROR, "score_fn, line 3: KeyError: 'x'", log_tail=log))

    shown = rlx("show", "best-lang-1")
    assert shown.code == 0
    assert "reward_error in stage train, attempt 1" in shown.out
    assert "score_fn, line 3: KeyError: 'x'" in shown.out
    assert "line 99" in shown.out
    assert "line 5\n" not in shown.out  # the tail of the tail
    assert "\x1b" not in shown.out
    assert "submit it again" in shown.out
    assert "0.500 [" in shown.out  # metrics survive

    failure = rlx("show", "best-lang-1", "--json").data["failure"]
    assert (failure["stage"], failure["cause"]) == ("train", "reward_error")


READINGS = {
    "total": {"start_up": 1.0, "generation": 5.0, "training": 3.0},
    "kept": {"start_up": 1.0, "generation": 2.0},
}


def test_show_tells_where_the_time_went(rlx, lab):
    run = lab.submit()
    claimed = lab.training(run)
    lab.finish(claimed, replace(Outcome.failed(Cause.LOST, "killed"), spent=READINGS))  # after 10 s
    claimed = lab.claim(run, "train")
    lab.finish(claimed, replace(Outcome.succeeded(StoredArtifact("1" * 64, "/a", "k", 1, 1)), spent=READINGS))

    data = rlx("show", "@last", "--json").data
    train = data["stages"][1]
    first, second = (
        {"start_up": 1, "generation": 2, "lost": 7},
        {"start_up": 1, "generation": 5, "training": 3, "other": 1},
    )
    assert [attempt["times"] for attempt in train["attempts"]] == [first, second]
    assert train["times"] == {"start_up": 2, "generation": 7, "training": 3, "other": 1, "lost": 7}
    assert data["times"]["other"] == 11  # that of `model`, which told nothing, too

    lines = rlx("show", "@last").out.splitlines()
    head = next(line for line in lines if line.startswith("TIME SPENT"))
    assert head.split()[2:] == ["START-UP", "GENERATION", "TRAINING", "OTHER", "LOST"]
    assert lines[lines.index(head) + 2].split() == ["train", "2.0s", "7.0s", "3.0s", "1.0s", "7.0s"]
    assert lines[lines.index(head) + 3].split() == ["together", "2.0s", "7.0s", "3.0s", "11s", "7.0s"]


def test_show_names_what_led_to_a_failure_and_where_processes_stood(rlx, lab):
    claimed = lab.training(lab.submit(retries={"hang": 0}))
    stack = '  File "/site/lib.py", line 3 in wait\n  File "/site/stage.py", line 9 in train\n'
    stacks = [
        {"pid": 7, "command": "python", "state": "S (sleeping)", "stacks": stack, "threads": []},
        {
            "pid": 8,
            "command": "sleep 600",
            "state": "S (sleeping)",
            "stacks": "",
            "threads": ["thread 8 (sleep), state S"],
        },
    ]
    detail = {"stacks": stacks, "chain": [{"type": "TimeoutError", "message": "timed out"}]}
    lab.finish(claimed, Outcome.failed(Cause.HANG, "no sign of life for 0:30:00", detail=detail))

    text = rlx("show", "@last").out
    assert "hang in stage train, attempt 1" in text
    assert "because     TimeoutError: timed out" in text
    assert 'stood at    7 python: File "/site/lib.py", line 3 in wait' in text
    assert "stood at    8 sleep 600: thread 8 (sleep), state S" in text
    assert "event       stage.failed: train failed: no sign of life" in text
    failure = rlx("show", "@last", "--json").data["failure"]
    assert failure["detail"]["stacks"] == stacks
    assert failure["events"][-1]["kind"] == "run.failed"


def test_show_tells_of_a_quarantine_and_how_to_end_it(rlx, lab):
    run = lab.submit(max_attempts=9)
    log = lab.home / "train.log"
    log.write_text("about to eat all memory\n")
    for number in range(3):
        claimed = lab.training(run) if number == 0 else lab.claim(run, "train")
        with lab.db.write() as session:
            stages.start(session, claimed, pid=1, log_path=str(log))
            stages.expire(session, lab.tick(60))

    text = rlx("show", "@last").out
    assert "lost in stage train, attempt 3" in text
    assert "quarantined: 3 workers in a row" in text
    assert "before      lost, lost" in text
    assert "about to eat all memory" in text  # nobody was left to store the log's end
    assert "release it with: rlx resume best-lang-1" in text
    assert rlx("show", "@last", "--json").data["failure"]["detail"]["quarantine"][0]["alone"] is True


def test_an_unknown_handle_is_not_found_and_names_the_closest(rlx, lab):
    lab.submit()
    shown = rlx("show", "best-lnag-1")
    assert shown.code == 3
    assert "best-lang-1" in shown.err
    assert shown.out == ""


def test_samples_show_every_candidate_its_q_and_the_choice(rlx, lab):
    claimed = lab.training(lab.submit())
    decisions = [
        {
            "candidates": [
                {"text": "1. C\n", "q": 0.25, "chosen": False},
                {"text": "1. Rust\n", "q": 0.75, "chosen": True},
            ]
        },
        {"candidates": [{"text": "The best\x1b[31m", "q": None, "chosen": True}], "reply": "no"},
    ]
    lab.sample(claimed, Sample(0, "plain\ntext", score=0.0, item=3), Sample(10, "x", 1.0, 0, data={"steps": decisions}))

    text = rlx("samples", "@last").out.splitlines()
    assert text[0] == "step 10, train, item 0, episode: score 1.0"
    assert text[2] == "      0.250  1. C⏎"
    assert text[3] == "  →   0.750  1. Rust⏎"
    assert text[5] == "  →       -  The best\\x1b[31m"
    assert text[6].split() == ["reply", "no"]
    assert "  plain" in text
    assert "  text" in text

    assert [row["step"] for row in rlx("samples", "@last", "--json").data] == [10, 0]
    assert [row["step"] for row in rlx("samples", "@last", "--json", "--step", "0").data] == [0]
    assert [row["step"] for row in rlx("samples", "@last", "--json", "--limit", "1").data] == [10]


def test_samples_of_the_best_checkpoint(rlx, lab):
    claimed = lab.training(lab.submit())
    lab.sample(claimed, Sample(10, "best", 1.0), Sample(20, "last", 0.5))
    lab.checkpoint(claimed, 10, "best")
    lab.checkpoint(claimed, 20, "latest")
    assert [row["text"] for row in rlx("samples", "@last", "--best", "--json").data] == ["best"]
    assert rlx("samples", "@last", "--best", "--step", "3").code == 2


def test_specs_are_listed_with_revisions_and_printed_as_written(rlx, lab):
    lab.submit()
    lab.submit()
    lab.submit("other")
    assert [(row["name"], row["revision"]) for row in rlx("specs", "--json").data] == [("best_lang", 1), ("other", 1)]
    assert "best_lang@1" in rlx("specs").out
    assert rlx("specs", "show", "best_lang").out == "version: 1\nname: best_lang\n"
    assert rlx("specs", "show", "best_lang@1", "--json").data == {"name": "best_lang"}

    missing = rlx("specs", "show", "best_lang@4")
    assert (missing.code, "best_lang@1" in missing.err) == (3, True)
    assert "'best_lang'" in rlx("specs", "show", "best_long").err
    assert rlx("specs", "show", "best_lang@x").code == 3


def test_workers_alive_are_listed(rlx, lab, monkeypatch):
    lab.training(lab.submit())
    monkeypatch.setattr("engine.clock.utc_now", lambda: lab.now)
    (row,) = rlx("worker", "ls", "--json").data
    assert (row["name"], row["host"], row["slots"], row["queues"]) == ("w1", "here", 2, ["default"])
    assert "w1" in rlx("worker", "ls").out


def test_the_untrained_model_of_a_final_evaluation_stands_beside_the_trained(rlx, lab):
    claimed = lab.training(lab.submit())
    lab.evaluate(claimed, 10, [1.0, 1.0], metric="final/score")
    lab.evaluate(claimed, 0, [0.0, 1.0], metric="final/untrained/score")
    (row,) = rlx("show", "@last", "--json").data["scores"]
    assert row["metric"] == "final/score"
    assert (row["first"]["mean"], row["best"], row["last"]["mean"]) == (0.5, None, 1.0)
    assert "final/score  train  0.500 [0.000, 1.000] at 0  -     1.000 [1.000, 1.000] at 10" in rlx("show", "@last").out
