"""Following logs: whole lines, each once, also of attempts that appear later and of the last words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.cli.logs import followed
from engine.store import stages


def test_lines_are_printed_once_and_whole_as_they_are_written(tmp_path):
    first, second = tmp_path / "1.log", tmp_path / "2.log"
    moments = iter(
        [
            lambda: first.write_text("one\ntw"),
            lambda: first.write_text("one\ntwo\n"),
            lambda: second.write_text("again\x1b[2J\nlast words without an end"),
        ]
    )
    first.write_text("")
    rows = [
        {"stage": "train", "number": 1, "log_path": str(first)},
        {"stage": "train", "number": 2, "log_path": str(second)},
    ]
    looks = iter([False, False, False, True])

    printed = list(followed(lambda: rows, lambda: next(looks), lambda: next(moments)(), None))

    assert printed == [
        "== train, attempt 1 ==",
        "one",
        "two",
        "== train, attempt 2 ==",
        "again\\x1b[2J",
        "last words without an end",
    ]


def test_only_the_last_lines_of_what_was_there_before(tmp_path):
    log = tmp_path / "1.log"
    log.write_text("".join(f"line {n}\n" for n in range(100)))
    rows = [{"stage": "train", "number": 1, "log_path": str(log)}]
    printed = list(followed(lambda: rows, lambda: True, lambda: None, 2))
    assert printed[1:] == ["line 98", "line 99"]


def test_the_log_of_a_service_is_shown_by_its_name(lab: Any, rlx: Any, tmp_path: Path) -> None:
    run = lab.submit()
    claimed = lab.training(run)
    log = tmp_path / "train-1.log"
    log.write_text("training\n")
    log.with_suffix(".reader.log").write_text("serving\n")
    (tmp_path / "train-11.judge.log").write_text("of another attempt\n")
    with lab.db.write() as session:
        stages.start(session, claimed, pid=1, pid_started=None, log_path=str(log))

    plain = rlx("logs", run.handle, "--stage", "train")
    chosen = rlx("logs", run.handle, "--service", "reader")
    as_json = rlx("logs", run.handle, "--service", "reader", "--json").data
    absent = rlx("logs", run.handle, "--service", "judge")

    assert (plain.out, "services that ran beside: reader" in plain.err) == ("training\n", True)
    assert chosen.out == "serving\n"
    assert [(row["stage"], row["service"], row["text"]) for row in as_json] == [("train", "reader", "serving\n")]
    assert absent.code == 3
    assert "no log of a service 'judge'" in absent.err
