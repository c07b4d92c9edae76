"""The pages over a seeded store: what they show, what the URL remembers, and what they say when there is nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sqlalchemy import select
from streamlit.testing.v1 import AppTest

from dashboard import wording
from engine.store import certificates, tables
from engine.store.session import open_database
from tests.dashboard.conftest import NOW, Open
from tests.dashboard.seed_runs import OUTLINES, Outline
from tests.dashboard.seed_texts import HOSTILE

DIFFERENT = [outline for outline in OUTLINES if outline.status != "succeeded" or outline.method == "ppo"]
"""One run in each status."""


def commands(app: AppTest) -> str:
    """All blocks of code on the page: commands, logs, samples."""
    return "\n".join(block.value for block in app.code)


def titles(app: AppTest) -> list[str]:
    return [title.value for title in app.title]


def test_the_list_shows_every_run_the_newest_first(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded)

    table = app.dataframe[0].value

    newest_first = sorted(OUTLINES, key=lambda outline: outline.hours_ago)
    assert list(table["run"]) == [outline.handle for outline in newest_first]
    by_handle = table.set_index("run")
    assert [status for (status,) in by_handle["status"]] == [outline.status for outline in newest_first]
    assert by_handle.loc["best-lang-5", "progress"] == 100
    # 1 of 3 stages done, and 41 of 60 steps of the second: (1 + 41/60) / 3
    assert by_handle.loc["twenty-questions-3", "progress"] == 56
    assert len(by_handle.loc["best-lang-5", "scores"]) == 14  # steps 0, 5, …, 60 and the final evaluation
    assert by_handle.loc["best-lang-5", "best"] == max(by_handle.loc["best-lang-5", "scores"])


@pytest.mark.parametrize(
    "query, handles",
    [
        ({"status": ["failed"]}, {"best-lang-4"}),
        ({"status": ["running", "queued"]}, {"twenty-questions-3", "twenty-questions-4"}),
        ({"tag": ["games", "candidates"]}, {"twenty-questions-2"}),
        ({"name": "ppo"}, {"best-lang-ppo-1"}),
        ({"name": "GRACE"}, {"best-lang-4", "best-lang-6"}),
        ({"name": "best_lang", "status": ["cancelled"]}, {"best-lang-6"}),
    ],
)
def test_filters_in_a_link_narrow_the_list(
    seeded: Path, open_app: Open, query: dict[str, str | list[str]], handles: set[str]
) -> None:
    app = open_app(seeded, query=query)

    assert set(app.dataframe[0].value["run"]) == handles


def test_a_filter_chosen_on_the_page_narrows_the_list(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded)

    app.text_input(key="name").set_value("reinforce").run()

    assert set(app.dataframe[0].value["run"]) == {"best-lang-reinforce-1"}


def test_filters_that_nothing_passes_say_so(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, query={"name": "no such thing"})

    assert not app.dataframe
    assert "rlx ls" in commands(app)


@pytest.mark.parametrize("page", ["runs", "run", "compare"])
def test_an_empty_store_teaches_the_command_that_fills_it(bare: Path, open_app: Open, page: str) -> None:
    app = open_app(bare, page)

    assert "rlx submit specs/best_lang.yaml" in commands(app)


@pytest.mark.parametrize("page", ["runs", "run", "compare"])
def test_a_missing_store_is_explained_and_not_made(tmp_path: Path, open_app: Open, page: str) -> None:
    app = open_app(tmp_path / "nowhere", page)

    assert [header.value for header in app.subheader] == ["No store to read"]
    assert "rlx submit specs/best_lang.yaml" in commands(app)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_of_another_version_names_the_command(bare: Path, open_app: Open) -> None:
    database = open_database(f"sqlite:///{bare / 'rlx.db'}")
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    database.close()

    app = open_app(bare)

    assert "rlx db upgrade" in commands(app)


def test_a_database_that_does_not_answer_is_explained(
    bare: Path, open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bare / "rlx.db").write_bytes(b"this is no database, and it is longer than a header of one hundred bytes " * 4)

    app = open_app(bare)

    assert [header.value for header in app.subheader] == ["The store does not answer"]
    assert "rlx doctor" in commands(app)


def test_a_run_shows_how_it_stands(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "twenty-questions-2"})

    assert titles(app) == [r"twenty\-questions\-2"]
    facts = {metric.label: metric.value for metric in app.metric}
    # 60 iterations of 16 scored episodes and 41,000 generated tokens
    assert facts["Episodes"] == "960"
    assert facts["Tokens"] == "2.46 M"
    assert facts["Progress"] == "100 %"
    assert facts["Took"] == "27 m 26 s"  # 22 + 1615 + 9 seconds, from one second after submission


@pytest.mark.parametrize("asked", ["@last", "twenty-questions-4", "twenty-questions-4 "])
def test_links_may_say_last_or_a_beginning(seeded: Path, open_app: Open, asked: str) -> None:
    app = open_app(seeded, "run", {"run": asked.strip()})

    assert app.selectbox(key="run").value == "twenty-questions-4"


def test_a_link_to_a_run_that_is_not_there_says_so(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "worst-lang-1"})

    assert "worst" in app.warning[0].value


def test_a_failed_run_says_why_and_what_to_do(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "best-lang-4", "tab": "Logs"})

    assert "score_fn, line 3: TypeError" in commands(app)
    assert any("rlx validate" in text.value for text in app.markdown)
    assert "rlx resume" not in commands(app), "resuming does not mend a reward function"
    assert "Traceback (most recent call last):" in commands(app)


def test_a_run_tells_where_its_time_went(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "best-lang-4"})

    (told,) = [caption.value for caption in app.caption if caption.value.startswith("Time spent")]
    assert "training" in told
    assert "lost" in told


def test_the_first_attempt_has_a_log_too(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "best-lang-4", "tab": "Logs", "attempt": "train, attempt 1"})

    assert "the worker's heartbeat stopped" in commands(app)
    assert "Traceback" not in commands(app)


def test_the_logs_of_services_stand_below_the_attempts(seeded: Path, tmp_path: Path, open_app: Open) -> None:
    home = shutil.copytree(seeded, tmp_path / "home")
    log = home / "logs" / "best-lang-4" / "train-1.log"
    log.parent.mkdir(parents=True)
    log.write_text("training\n")
    log.with_suffix(".judge.log").write_text("listening\n")
    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    with database.write() as session:
        for attempt in session.scalars(select(tables.Attempt).where(tables.Attempt.number == 1)):
            attempt.log_path = str(log)
    database.close()

    app = open_app(home, "run", {"run": "best-lang-4", "tab": "Logs", "attempt": "train, attempt 1"})

    assert "listening" in commands(app)
    assert "rlx logs best-lang-4 --service judge" in commands(app)


@pytest.mark.parametrize("outline", DIFFERENT, ids=lambda outline: outline.handle)
@pytest.mark.parametrize("tab", ["Metrics", "Samples", "Evaluations", "Checkpoints", "Logs", "Spec"])
def test_every_tab_opens_whatever_became_of_the_run(seeded: Path, open_app: Open, outline: Outline, tab: str) -> None:
    app = open_app(seeded, "run", {"run": outline.handle, "tab": tab})

    if outline.status == "queued" and tab != "Spec":
        assert "rlx " in commands(app), "an empty tab teaches a command"


def test_model_output_is_shown_as_it_was_written(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "best-lang-5", "tab": "Samples", "text": "pwned"})

    written = HOSTILE.strip()  # st.code leaves the last line end out
    blocks = [block.value for block in app.code]
    assert written in blocks, "the candidate, character by character"
    assert any(block.endswith(written) and block != written for block in blocks), "the whole conversation"
    heard = [*app.markdown, *app.caption, *app.title, *app.subheader, *app.header]
    assert not any("pwned" in element.value or "frac" in element.value for element in heard)
    assert all(block.language in ("", "plaintext", None) for block in app.code if "pwned" in block.value)


def test_a_link_opens_one_sample_at_one_decision(seeded: Path, open_app: Open) -> None:
    first = open_app(seeded, "run", {"run": "best-lang-3", "tab": "Samples", "order": "worst"})
    shown = first.query_params["sample"]

    again = open_app(seeded, "run", {"run": "best-lang-3", "tab": "Samples", "sample": shown, "decision": "4"})

    candidates = [block.value for block in again.code if block.value.startswith("The best programming language is")]
    assert len(candidates) == 8
    badges = [text.value for text in again.markdown if "executed" in text.value]
    assert len(badges) == 1, "one candidate was executed"


def test_samples_are_found_by_their_text(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "twenty-questions-2", "tab": "Samples", "text": "yes, that is IT"})

    scores = app.dataframe[0].value["score"]
    assert len(scores) > 0
    assert (scores > 0).all(), "an episode that ended so was won"


def test_the_spec_is_shown_with_its_changes(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "best-lang-6", "tab": "Spec"})

    text = commands(app)
    assert "+  generator: {signal: centred, kl: 0.02}" in text
    assert "seed=2" in text


def test_checkpoints_teach_how_to_use_them(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "best-lang-1", "tab": "Checkpoints"})

    assert list(app.dataframe[0].value["step"]) == [60, 40, 20]
    assert "rlx eval best-lang-1 --checkpoint best" in commands(app)


def test_two_runs_are_compared_as_the_command_line_does(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "compare", {"a": "twenty-questions-1", "b": "twenty-questions-2"})

    scores, _, differences = (frame.value for frame in app.dataframe)
    assert set(scores["split"]) == {"train", "heldout"}
    assert list(scores["items"]) == [24, 12, 24, 12]
    assert differences.to_dict("records") == [
        {"in": "spec", "key": "algorithm.ranker.candidates", "a": "4", "b": "16"},
    ]
    assert "rlx compare twenty-questions-1 twenty-questions-2" in commands(app)


def test_swapping_turns_the_comparison_round(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "compare", {"a": "twenty-questions-1", "b": "twenty-questions-2"})
    before = app.dataframe[0].value

    app.button[0].click().run()

    after = app.dataframe[0].value
    assert list(after["a"]) == list(before["b"])
    assert app.query_params["a"] == "twenty-questions-2"


def test_runs_of_different_data_are_not_paired(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "compare", {"a": "best-lang-1", "b": "twenty-questions-1"})

    assert set(app.dataframe[0].value["verdict"]) == {"cannot tell"}
    assert set(app.dataframe[0].value["test"]) == {"–"}


def test_a_run_compared_with_itself_asks_for_another(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "compare", {"a": "best-lang-1", "b": "best-lang-1"})

    assert not app.dataframe
    assert any("two different runs" in caption.value for caption in app.caption)


def test_runs_without_a_common_evaluation_name_the_command(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "compare", {"a": "twenty-questions-3", "b": "twenty-questions-4"})

    assert "rlx eval twenty-questions-4" in commands(app)


def test_pages_write_nothing(seeded: Path, open_app: Open, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(seeded, home)
    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    with database.read() as session:
        before = {table.name: session.execute(table.select()).all() for table in tables.Base.metadata.sorted_tables}

    for page, query in (("runs", {}), ("run", {"run": "best-lang-5", "tab": "Samples"}), ("compare", {})):
        open_app(home, page, query)

    with database.read() as session:
        after = {table.name: session.execute(table.select()).all() for table in tables.Base.metadata.sorted_tables}
    assert after == before
    assert {name for name in os.listdir(home) if not name.startswith("rlx.db")} == set()


def test_metrics_are_ordered_by_what_one_came_to_see(seeded: Path, open_app: Open) -> None:
    app = open_app(seeded, "run", {"run": "best-lang-1"})

    shown = [caption.value.replace("\\", "") for caption in app.caption]
    at = [shown.index(key) for key in ("rollout/score", "critic/loss", "policy/kl", "epsilon", "cost/generated_tokens")]
    assert at == sorted(at)
    assert shown.index("cost/generated_tokens") < shown.index("eval/loss"), "the last stage stands first"


def test_a_run_shows_whether_its_method_was_seen_to_resume(seeded: Path, open_app: Open, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(seeded, home)
    database = open_database(f"sqlite:///{home / 'rlx.db'}")
    finding = certificates.Finding(
        method="archer",
        versions={"lm.prepare": 1, "archer.train": 1, "archer.evaluate": 1},
        spec="best_lang",
        spec_hash="a" * 64,
        outcome="identical",
        kills=6,
        seed=0,
        weights_sha256=None,
        code={"version": "0.1.0", "commit": "3f9c2ab41d"},
        packages={},
        hardware={},
        detail={},
        created_at=NOW,
    )
    with database.write() as session:
        certificates.record(session, finding)
    database.close()

    def captions(handle: str) -> list[str]:
        return [caption.value for caption in open_app(home, "run", {"run": handle}).caption]

    assert wording.plain("resume verified: 6 kills, identical") in captions("best-lang-5")
    assert not any("resume" in caption for caption in captions("best-lang-ppo-1"))
