"""The first experiment as its user meets it: submit, look, compare, evaluate, load the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.rlx_command import SMALL, Rlx

FEW = ("evaluation.runs_per_item=4",)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def rlx(tmp_path_factory: pytest.TempPathFactory) -> Rlx:
    """A home in which best_lang ran twice, with two seeds."""
    command = Rlx(tmp_path_factory.mktemp("home"))
    for seed in (0, 1):
        handle = command("submit", "specs/best_lang.yaml", *SMALL, *FEW, f"seed={seed}").strip()
        assert handle == f"best-lang-{seed + 1}"
    return command


def test_the_run_tells_its_status_scores_and_checkpoints(rlx: Rlx) -> None:
    shown = rlx.json("show", "best-lang-1")

    assert shown["status"] == "succeeded"
    assert [stage["name"] for stage in shown["stages"]] == ["model", "train", "evaluate"]
    metrics = {(row["metric"], row["split"]) for row in shown["evaluations"]}
    assert {("score", "train"), ("final/score", "train"), ("final/untrained/score", "train")} <= metrics
    assert {"best", "latest"} <= {label for row in shown["checkpoints"] for label in row["labels"]}


def test_the_best_checkpoint_is_a_hugging_face_directory(rlx: Rlx) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shown = rlx.json("show", "best-lang-1")
    best = next(row for row in shown["checkpoints"] if "best" in row["labels"])
    folder = Path(best["uri"].removeprefix("file://")) / "generator"

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("The best programming language", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]


def test_samples_show_every_candidate_with_its_value(rlx: Rlx) -> None:
    samples = rlx.json("samples", "best-lang-1", "--limit", "1")

    candidates = samples[0]["data"]["steps"][0]
    assert len(candidates) == 8
    assert sum(candidate["chosen"] for candidate in candidates) == 1
    assert all(isinstance(candidate["q"], float) for candidate in candidates)


def test_compare_names_the_one_difference_with_intervals_and_a_paired_test(rlx: Rlx) -> None:
    compared = rlx.json("compare", "best-lang-1", "best-lang-2")

    assert [difference["path"] for difference in compared["differences"]["spec"]] == ["seed"]
    score = next(row for row in compared["metrics"] if row["metric"] == "final/score")
    assert 0 < score["test"]["p_value"] <= 1
    assert score["difference"]["low"] <= score["test"]["difference"] <= score["difference"]["high"]
    assert compared["verdict"] in {"better", "worse", "cannot tell"}


def test_an_evaluation_is_a_run_of_its_own(rlx: Rlx) -> None:
    handle = rlx("eval", "best-lang-1", "--runs-per-item", "3", "--wait").strip().splitlines()[0]

    shown = rlx.json("show", handle)
    assert shown["status"] == "succeeded"
    assert {row["count"] for row in shown["evaluations"]} == {3}


def test_the_gpu_specs_tiny_twin_runs_here_without_a_network(rlx: Rlx) -> None:
    handle = rlx("submit", "specs/best_lang_llama.yaml", "--tiny").strip()

    assert rlx.json("show", handle)["status"] == "succeeded"


def test_a_resubmitted_spec_reuses_what_it_already_computed(rlx: Rlx) -> None:
    handle = rlx("submit", "specs/best_lang.yaml", *SMALL, "seed=0", "evaluation.runs_per_item=5").strip()

    cached = {stage["name"]: stage["cached"] for stage in rlx.json("show", handle)["stages"]}
    assert cached["model"]
    assert not cached["evaluate"]
