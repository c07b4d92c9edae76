"""`submit` up to the queue, on a stand-in for the workers; and once for real, with the tiny twin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import Cause
from engine.store import runs, stages
from engine.store.retries import Retries

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def spec(rlx, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rlx("init", "green.yaml")
    return tmp_path / "green.yaml"


@pytest.fixture
def queued(monkeypatch):
    """Somebody else's worker is alive, so that submitting returns at once."""
    monkeypatch.setattr("workers.dispatch.find_alive", lambda settings: ["w1"])
    monkeypatch.setattr("workers.dispatch.publish", lambda settings: 0)


def test_a_run_is_queued_with_all_that_is_remembered(rlx, spec, queued, lab):
    answer = rlx("submit", str(spec), "seed=3", "--tag", "paper", "--note", "first", "--priority", "5")
    assert (answer.code, answer.out) == (0, "green-1\n")
    assert "rlx watch green-1" in answer.err

    with lab.db.read() as session:
        run = runs.find(session, "@last")
        spec_row = runs.spec_of(session, run)
    assert (run.seed, run.overrides, run.tags, run.notes, run.priority) == (3, ["seed=3"], ["paper"], "first", 5)
    assert run.resolved["seed"] == 3
    assert spec_row.source == spec.read_text()
    assert spec_row.resolved["seed"] == 0
    assert run.packages["torch"].startswith("2.")
    assert run.code["version"]
    assert run.hardware["cpus"] == os.cpu_count()
    assert len(run.functions_hash) == 64


def test_a_stage_keeps_what_the_spec_says_about_failures(rlx, spec, queued, lab):
    said = ("retries.max_attempts=5", "retries.lost=20", "retries.quarantine=null", "retries.backoff=30s")
    assert rlx("submit", str(spec), *said, "hardware.stall_timeout=5m", "retries.max_backoff=1h").code == 0

    with lab.db.read() as session:
        (stage, *_) = stages.for_run(session, runs.find(session, "@last").id)
    policy = Retries.of(stage.max_attempts, stage.retries)
    assert policy == Retries(5, {Cause.LOST: 20}, backoff_s=30.0, max_backoff_s=3600.0, quarantine=None)
    assert stage.resources["stall_timeout_s"] == 300.0


def test_retries_of_the_specs_own_error_are_refused(rlx, spec, queued):
    answer = rlx("submit", str(spec), "retries.data_error=2")
    assert answer.code == 2
    assert "data_error is never retried" in answer.err


def test_the_same_spec_is_one_revision_whatever_the_overrides(rlx, spec, queued):
    rlx("submit", str(spec))
    rlx("submit", str(spec), "seed=1")
    spec.write_text(spec.read_text().replace("iterations: 30", "iterations: 31"))
    rlx("submit", str(spec))
    assert [row["spec"] for row in rlx("ls", "--json").data] == ["green@2", "green@1", "green@1"]


def test_a_sweep_is_a_run_a_variant(rlx, spec, queued):
    answer = rlx("submit", str(spec), "seed=1,2")
    assert answer.out == "green-1\ngreen-2\n"
    data = rlx("compare", "green-1", "green-2", "--json").data
    assert data["differences"]["spec"] == [{"path": "seed", "a": 1, "b": 2}]
    assert [data["differences"][name] for name in ("code", "packages", "hardware")] == [[], [], []]


def test_a_tiny_twin_is_a_run_of_its_own_name(rlx, spec, queued):
    assert rlx("submit", str(spec), "--tiny").out == "green-tiny-1\n"
    (row,) = rlx("ls", "--json").data
    assert row["tiny"] is True


def test_gpus_that_nobody_could_lend_are_refused_and_queue_nothing(rlx, spec, lab, monkeypatch):
    monkeypatch.setattr("workers.devices.gpus_here", lambda: ["0"])
    answer = rlx("submit", str(spec), "hardware.gpus=2", "--no-wait")
    assert answer.code == 5
    assert "asks for 2 GPUs, and this machine has 1" in answer.err
    assert "--tiny" in answer.err
    assert rlx("ls", "--json").data == []


def test_a_run_of_its_own_worker_serves_the_queue_that_the_spec_names(rlx, spec, monkeypatch):
    started = []
    monkeypatch.setattr("workers.dispatch.start_worker", lambda settings, run, *, queues: started.append(queues))
    assert rlx("submit", str(spec), "hardware.queue=big", "--no-wait").code == 0
    assert started == [["big"]]


def test_a_sweep_that_is_not_waited_for_starts_no_crowd_of_workers(rlx, spec, monkeypatch):
    monkeypatch.setattr("workers.dispatch.start_worker", lambda *_, **__: pytest.fail("a worker was started"))
    answer = rlx("submit", str(spec), "seed=1,2,3", "--no-wait")
    assert (answer.code, answer.out) == (0, "green-1\ngreen-2\ngreen-3\n")
    assert "rlx worker" in answer.err


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {}['x']", "KeyError"),
        ("return 'high'", "str"),
        ("return float('nan')", "nan"),
        ("import random; return random.random()", "could not be repeated"),
    ],
)
def test_a_function_that_breaks_its_contract_queues_nothing(rlx, spec, queued, lab, body, said):
    start = spec.read_text().index("    def score_fn")
    end = spec.read_text().index("  # Called after every token, with the whole")
    spec.write_text(
        spec.read_text()[:start] + f"    def score_fn(text, answer):\n        {body}\n" + spec.read_text()[end:]
    )
    answer = rlx("submit", str(spec))
    assert answer.code == 2
    assert answer.out == ""
    assert said in answer.err
    assert "green.yaml:" in answer.err
    assert "score_fn" in answer.err
    assert rlx("ls", "--json").data == []


def test_a_reward_that_an_echo_wins_is_let_through_with_a_warning(rlx, spec, queued):
    start = spec.read_text().index("    def score_fn")
    end = spec.read_text().index("  # Called after every token, with the whole")
    spec.write_text(
        spec.read_text()[:start] + "    def score_fn(text, answer):\n        return 1.0\n" + spec.read_text()[end:]
    )
    answer = rlx("submit", str(spec))
    assert answer.code == 0
    assert "warning:" in answer.err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.name=./no-such-folder", "no-such-folder"),
        ("model.name=scratch:llama-nona", "llama-nano"),
        ("model.name=no-such-org/no-such-model", "no-such-org/no-such-model"),
    ],
)
def test_a_model_that_does_not_exist_is_bad_input(rlx, spec, queued, monkeypatch, override, said):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = spec.read_text()
    if "scratch" not in override:
        text = text[: text.index("  # What a model from scratch reads first")] + "evaluation: {every: 10}\n"
        spec.write_text(text)
    answer = rlx("submit", str(spec), override)
    assert answer.code == 2
    assert said in answer.err
    assert answer.out == ""


def test_a_model_of_another_run_must_be_there(rlx, spec, queued, lab):
    text = spec.read_text()
    spec.write_text(text[: text.index("  # What a model from scratch reads first")] + "evaluation: {every: 10}\n")
    assert rlx("submit", str(spec), "model.name=run:best-lang-1@best").code == 3

    lab.succeeded()
    assert rlx("submit", str(spec), "model.name=run:best-lang-1@best").code == 0
    plan = rlx("plan", str(spec), "model.name=run:best-lang-1", "--json").data
    assert plan["stages"][0]["extra"]["model_path"].endswith("best-lang-1/step-10/generator")
    assert plan["stages"][0]["extra"]["model_sha256"] == "c" * 64


def test_a_local_model_is_known_by_what_is_in_it(rlx, spec, tmp_path):
    text = spec.read_text()
    spec.write_text(text[: text.index("  # What a model from scratch reads first")] + "evaluation: {every: 10}\n")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def told() -> str:
        plan = rlx("plan", str(spec), f"model.name={folder}", "--json").data
        return str(plan["stages"][0]["extra"]["model_content"])

    first = told()
    assert told() == first
    (folder / "config.json").write_text("{ }")
    assert told() != first


def rlx_process(*line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", *line],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RLX_HOME": str(cwd / ".rlx"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_embedded_default_runs_to_the_end_in_the_foreground(tmp_path):
    spec = ROOT / "specs" / "best_lang.yaml"

    submitted = rlx_process("submit", str(spec), "--tiny", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    assert submitted.stdout == "best-lang-tiny-1\n"
    assert "best-lang-tiny-1 train: succeeded" in submitted.stderr
    assert "untrained" in submitted.stderr

    again = rlx_process("submit", str(spec), "--tiny", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "train: succeeded from the cache" in again.stderr
    assert "hit" in rlx_process("plan", str(spec), "--tiny", cwd=tmp_path).stdout

    evaluated = rlx_process("eval", "best-lang-tiny-1", "--runs-per-item", "3", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout == "best-lang-tiny-eval-1\n"
    assert "model: succeeded from the cache" in evaluated.stderr
