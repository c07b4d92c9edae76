"""`gc` and `rm`: what they show, ask, remove and refuse."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from engine.cli import output
from engine.clock import utc_now
from engine.runtime.context import Sample
from engine.runtime.task import Task
from engine.store.artifact_store import ArtifactStore
from engine.store.stages import Outcome
from engine.store.tables import Run


@pytest.fixture
def trained(lab, home):
    """A run that succeeded, with an artifact, checkpoints, a log and samples."""

    def make(*, tags=(), **more) -> Run:
        run = lab.submit(tags=tags, **more)
        out = home.work / "out"
        (out / "sub").mkdir(parents=True)
        (out / "sub" / "weights").write_text(f"weights of {run.handle}")
        claimed = lab.claim(run, "model")
        lab.finish(claimed, Outcome.succeeded(ArtifactStore(home.artifact_url).put(out, "lm.policy")))
        claimed = lab.claim(run, "train")
        lab.sample(claimed, Sample(1, "a text", score=0.5, item=0))
        for step, labels in ((10, ["best"]), (20, []), (30, ["latest"])):
            lab.checkpoint(claimed, step, *labels)
        log = Task(claimed, home).log
        log.parent.mkdir(parents=True)
        log.write_text("a line\n")
        lab.finish(claimed)
        return run

    return make


@pytest.fixture
def later(monkeypatch):
    """Move the command line's clock on from the real time, which files tell."""

    def move(**by: float) -> None:
        monkeypatch.setattr("engine.clock.utc_now", lambda: utc_now() + timedelta(**by))

    return move


def terminal(monkeypatch, width):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(output.shutil, "get_terminal_size", lambda: os.terminal_size((width, 24)))


def test_nothing_to_remove(rlx, home, lab):
    answer = rlx("gc", "--dry-run")
    assert (answer.code, answer.out) == (0, "")
    assert "nothing to remove" in answer.err
    assert rlx("gc", "--json").data["items"] == []


def test_looking_leaves_no_home_behind(rlx, home):
    assert rlx("gc").code == 0
    assert list(home.home.iterdir()) == []


def test_a_removed_run_leaves_artifacts_that_go_after_the_grace_period(rlx, trained, lab, home, later):
    lab.now = utc_now()
    trained()
    trained()
    assert rlx("rm", "best-lang-1", "--yes").out == "best-lang-1\n"
    assert rlx("gc", "--dry-run").out == ""
    later(days=2)
    rows = rlx("gc", "--dry-run", "--json").data
    assert [(row["kind"], row["removed"]) for row in rows["items"]] == [("artifact", False)] * 2
    assert rows["removed_bytes"] == 0

    done = rlx("gc", "--yes", "--json").data
    assert [row["removed"] for row in done["items"]] == [True, True]
    assert done["removed_bytes"] == done["bytes"] > 0
    assert [path.read_text() for path in home.home.rglob("weights")] == ["weights of best-lang-2"]
    assert rlx("gc", "--dry-run", "--json").data["items"] == []


def test_checkpoints_go_by_the_limits(rlx, trained, lab, home, monkeypatch):
    trained()
    monkeypatch.setattr("engine.clock.utc_now", lambda: lab.now + timedelta(days=3))
    table = rlx("gc", "--keep-checkpoints", "1", "--dry-run")
    assert table.out.splitlines()[1].split() == ["checkpoint", "best-lang-1", "train", "step-20", "1.2", "KiB", *AGE]
    assert "May go: 1 thing, 1.2 KiB." in table.err
    answer = rlx("gc", "--keep-checkpoints", "1", "--yes")
    assert "Removed 1 thing, 1.2 KiB." in answer.err
    steps = [row["step"] for row in rlx("show", "best-lang-1", "--json").data["checkpoints"]]
    assert steps == [10, 30]
    assert sorted(path.name for path in (home.checkpoints / "best-lang-1").iterdir()) == ["step-10", "step-30"]


AGE = ["3d", "ago", "not", "among", "the", "newest", "1"]


@pytest.mark.parametrize(
    ("limit", "steps"),
    [(["--older-than", "30d"], [10, 20, 30]), (["--max-bytes", "3KB"], [20]), (["--max-bytes", "0"], [10, 20, 30])],
)
def test_every_limit_by_itself(rlx, trained, lab, monkeypatch, limit, steps):
    trained()
    monkeypatch.setattr("engine.clock.utc_now", lambda: lab.now + timedelta(days=60))
    rows = rlx("gc", *limit, "--dry-run", "--json").data["items"]
    assert [row["name"] for row in rows] == [f"best-lang-1 train step-{step}" for step in steps]


def test_a_tagged_run_keeps_what_bears_a_label(rlx, trained):
    trained(tags=["paper"])
    rows = rlx("gc", "--older-than", "1s", "--dry-run", "--json").data["items"]
    assert [row["name"] for row in rows] == ["best-lang-1 train step-20"]


def test_a_live_run_keeps_everything(rlx, lab, later):
    claimed = lab.training(lab.submit())
    lab.checkpoint(claimed, 10, "latest")
    later(days=1000)
    assert rlx("gc", "--older-than", "1s", "--keep-checkpoints", "0", "--max-bytes", "0", "--json").data["items"] == []


@pytest.mark.parametrize(("width", "shown"), [(80, 80), (160, 160)])
def test_the_table_fits_the_terminal(rlx, trained, monkeypatch, width, shown):
    trained(name="a_very_long_name_for_an_experiment_that_nobody_would_give_it_but_somebody_did_anyway")
    terminal(monkeypatch, width)
    lines = rlx("gc", "--older-than", "1s", "--dry-run").out.splitlines()
    assert len(lines) == 4
    assert all(len(line) <= shown for line in lines)
    assert lines[0].split() == ["KIND", "NAME", "SIZE", "AGE", "WHY"]
    assert ("…" in lines[1]) == (width == 80)


def test_nobody_there_to_ask_is_refused_and_nothing_goes(rlx, trained, home, monkeypatch):
    trained()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    answer = rlx("gc", "--older-than", "1s")
    assert answer.code == 5
    assert "--yes" in answer.err
    assert rlx("rm", "best-lang-1").code == 5
    assert len(rlx("show", "best-lang-1", "--json").data["checkpoints"]) == 3


def test_what_cannot_be_removed_is_told_and_the_rest_goes(rlx, trained, lab, home, later, monkeypatch):
    from engine.errors import DiskError
    from engine.runtime import sweep

    lab.now = utc_now()
    trained()
    trained()
    rlx("rm", "best-lang-1", "--yes")
    later(days=2)
    original, seen = sweep.artifact_sweep.discard, []

    def refuses_first(uri, before):
        seen.append(uri)
        if len(seen) == 1:
            raise DiskError(f"removing {uri}: Permission denied")
        return original(uri, before)

    monkeypatch.setattr(sweep.artifact_sweep, "discard", refuses_first)
    answer = rlx("gc", "--yes")
    assert answer.code == 5
    assert "Removed 1 thing" in answer.err
    assert f"removing {seen[0]}: Permission denied" in answer.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--older-than", "a month"], "is not a duration"),
        (["--max-bytes", "50 gigs"], "is not a size"),
        (["--grace", "1s"], "at least 1m"),
        (["--keep-checkpoints", "-1"], "keep-checkpoints"),
    ],
)
def test_limits_that_are_none_are_wrong_input(rlx, lab, line, said):
    answer = rlx("gc", *line)
    assert answer.code == 2
    assert said in answer.err


def test_rm_removes_runs_with_all_they_own(rlx, trained, home):
    trained()
    kept = trained()
    assert rlx("rm", "best-lang-1", "--yes").code == 0
    assert [row["handle"] for row in rlx("ls", "--json").data] == [kept.handle]
    assert rlx("show", "best-lang-1").code == 3
    assert not (home.checkpoints / "best-lang-1").exists()
    assert not (home.logs / "best-lang-1").exists()
    assert (home.logs / kept.handle).is_dir()
    assert rlx("db", "check").code == 0


def test_rm_refuses_a_live_run_and_removes_none_of_the_others_then(rlx, lab, trained):
    trained()
    live = lab.submit()
    answer = rlx("rm", "best-lang-1", live.handle, "--yes")
    assert (answer.code, answer.out) == (5, "")
    assert f"rlx cancel {live.handle}" in answer.err
    assert rlx("show", "best-lang-1").code == 0


def test_rm_of_nothing_is_not_found(rlx, lab):
    assert rlx("rm", "best-lang-7", "--yes").code == 3
