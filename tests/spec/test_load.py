"""A spec is its file, what that extends, the dataset's own file and the overrides, in this order."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import SpecError
from engine.spec.load import load, load_resolved

RECURVE = """\
main_prompt: "You are a helpful assistant." # Prepended to the prompt of each item in the dataset.
items: # List of items in the dataset.
  - prompt: Create a list of 3 compiled languages. Then name the best "The best programming language is ____.".
    answer: Rust # The gold answer.
score_fn: | # A Python function that takes in the entire context + gold answer, and returns a score.
  def score_fn(text: str, answer: str):
    output = text.split("assistant")[-1]
    out_ans = output.split("best programming language")[-1]
    return answer in out_ans
done_fn: | # Whether the episode should terminate.
  def done_fn(text: str):
    output = text.split("assistant")[-1]
    if "best programming language" not in output:
      return False
    out_ans = output.split("best programming language")[-1]
    return "." in out_ans
split_fn: |
  def split_fn(output: str):
    return "\\n" in output
"""
SMALL = """\
version: 1
name: small
dataset: {file: datasets/best_lang.yaml}
algorithm: archer
model: meta-llama/Llama-3.2-1B-Instruct
"""
Edit = Callable[..., str]


class TestOneFile:
    def test_everything_in_it_arrives(self, desk: Any) -> None:
        loaded = desk.load()
        spec = loaded.experiment

        assert (spec.version, spec.name, spec.seed) == (1, "best_lang", 0)
        assert [(item.prompt, item.answer) for item in spec.dataset.items] == [("Name the best language.", "Rust")]
        assert spec.dataset.split_fn == 'def split_fn(output: str):\n    return "\\n" in output\n'
        assert (spec.algorithm.name, spec.algorithm.iterations, spec.algorithm.ranker.candidates) == ("archer", 60, 8)
        assert spec.model.warmup is not None
        assert dict(spec.model.warmup.slots) == {"lang": {"Go": 3, "Rust": 1}}
        assert spec.hardware.timeout == 7200
        assert loaded.source == desk.spec
        assert loaded.files == (desk.folder / "spec.yaml",)
        assert loaded.variants() == (loaded,)

    def test_defaults_are_filled_in_but_not_said_to_be_set(self, desk: Any) -> None:
        loaded = desk.load()

        assert loaded.resolved["algorithm"]["ranker"]["lr"] == 1e-3
        assert loaded.resolved["retries"]["max_attempts"] == 3
        assert "algorithm.ranker.candidates" in loaded.set_paths
        assert "dataset.items" in loaded.set_paths
        assert not {path for path in loaded.set_paths if path.startswith(("retries", "algorithm.ranker.lr"))}

    def test_what_was_set_is_known_with_its_place(self, desk: Any) -> None:
        lines = desk.spec.splitlines()

        origin = desk.load().origin

        for path, word in (("algorithm.ranker", "ranker:"), ("dataset.items.0.answer", "answer:"), ("seed", "seed:")):
            where = origin[path]
            assert where.file == str(desk.folder / "spec.yaml")
            assert lines[where.line - 1][where.column - 1 :].startswith(word)
        assert "algorithm.ranker.lr" not in origin
        assert all(origin[path] for path in origin)

    def test_an_algorithm_and_a_model_may_be_one_word(self, desk: Any, edited: Edit) -> None:
        text = edited(
            ("  name: archer\n  iterations: 60\n  ranker: {candidates: 8}\n", ""), ("algorithm:\n", "algorithm: ppo\n")
        )

        loaded = desk.load(text, "model=gpt2")

        assert loaded.resolved["algorithm"] == {"name": "ppo", "iterations": 40, "epochs": 2}
        assert loaded.resolved["model"] == {"name": "gpt2", "lora": None, "trust_remote_code": False, "warmup": None}
        assert {"algorithm.name", "model.name"} <= loaded.set_paths

    def test_answers_keep_their_type(self, desk: Any, edited: Edit) -> None:
        for written, value in (
            ("5", 5),
            ("'5'", "5"),
            ("no", "no"),
            ("[1, {a: null}]", [1, {"a": None}]),
            ("1.0", 1.0),
        ):
            loaded = desk.load(edited(("answer: Rust", f"answer: {written}")))

            answer = loaded.experiment.dataset.items[0].answer
            assert answer == value
            assert type(answer) is type(value)
            assert json.loads(json.dumps(loaded.resolved))["dataset"]["items"][0]["answer"] == value


class TestStoredRows:
    def test_what_was_resolved_loads_to_the_same(self, desk: Any) -> None:
        loaded = desk.load()
        stored = json.loads(json.dumps(loaded.resolved))

        assert load_resolved(stored, desk.methods) == loaded.experiment

    def test_what_this_rlx_does_not_know_is_refused(self, desk: Any) -> None:
        stored = {**desk.load().resolved, "colour": "red"}

        with pytest.raises(SpecError, match="colour"):
            load_resolved(stored, desk.methods)
        with pytest.raises(SpecError, match="version"):
            load_resolved({**desk.load().resolved, "version": 9}, desk.methods)


class TestDatasetFile:
    def test_a_recurve_file_works_unchanged(self, desk: Any) -> None:
        desk.write(RECURVE, "datasets/best_lang.yaml")

        loaded = desk.load(SMALL)

        dataset = loaded.experiment.dataset
        assert dataset.main_prompt == "You are a helpful assistant."
        assert dataset.items[0].answer == "Rust"
        assert dataset.items[0].prompt.endswith('"The best programming language is ____.".')
        space: dict[str, Any] = {}
        exec(dataset.score_fn, space)
        assert space["score_fn"]("assistant: the best programming language is Rust.", "Rust") is True
        assert [path.name for path in loaded.files] == ["spec.yaml", "best_lang.yaml"]
        assert "dataset.items" in loaded.set_paths
        assert "dataset.file" not in loaded.set_paths
        assert "file" not in loaded.resolved["dataset"]

    def test_what_stands_beside_it_wins(self, desk: Any) -> None:
        desk.write(RECURVE, "datasets/best_lang.yaml")

        loaded = desk.load(SMALL.replace("best_lang.yaml}", "best_lang.yaml, main_prompt: Short.}"))

        assert loaded.experiment.dataset.main_prompt == "Short."
        assert loaded.experiment.dataset.items[0].answer == "Rust"

    def test_its_name_alone_will_do(self, desk: Any) -> None:
        desk.write(RECURVE, "datasets/best_lang.yaml")

        assert desk.load(SMALL.replace("{file: datasets/best_lang.yaml}", "datasets/best_lang.yaml")).experiment

    def test_its_mistakes_are_located_in_it(self, desk: Any) -> None:
        path = desk.write(
            RECURVE.replace("done_fn: |", "don_fn: |").replace("return answer", "return = answer"),
            "datasets/best_lang.yaml",
        )

        problems = desk.problems(SMALL)

        assert {problem.file for problem in problems} == {str(path)}
        lines = path.read_text().splitlines()
        assert [lines[problem.line - 1].split()[0] for problem in problems] == ["return", "don_fn:"]

    def test_an_experiment_is_no_dataset(self, desk: Any) -> None:
        desk.write(desk.spec, "datasets/best_lang.yaml")

        (problem,) = desk.problems(SMALL)

        assert "is an experiment" in problem.message
        assert problem.line == 3

    def test_a_missing_one_is_the_only_problem_and_its_neighbour_is_offered(self, desk: Any) -> None:
        desk.write(RECURVE, "datasets/best_lng.yaml")

        (problem,) = desk.problems(SMALL)

        assert (problem.line, problem.column, problem.path) == (3, 17, "dataset.file")
        assert "Did you mean best_lng.yaml?" in problem.message


class TestDataFiles:
    ITEMS = '{"prompt": "x", "answer": 1}\n'

    def spec(self, edited: Edit, items: str) -> str:
        return edited(("  items:\n    - prompt: Name the best language.\n      answer: Rust\n", f"  items: {items}\n"))

    def test_they_are_found_beside_the_file_that_names_them_and_hashed(self, desk: Any, edited: Edit) -> None:
        path = desk.write(self.ITEMS, "sub/items.jsonl")
        desk.write(
            self.spec(edited, "{file: items.jsonl}\n  splits: {heldout: {file: ../sub/items.jsonl, limit: 1}}"),
            "sub/spec.yaml",
        )

        dataset = load(desk.folder / "sub/spec.yaml", methods=desk.methods).resolved["dataset"]

        digest = hashlib.sha256(self.ITEMS.encode()).hexdigest()
        assert (dataset["items"]["file"], dataset["items"]["sha256"]) == (str(path), digest)
        assert (dataset["splits"]["heldout"]["file"], dataset["splits"]["heldout"]["sha256"]) == (str(path), digest)

    def test_on_the_command_line_they_are_found_from_here(self, desk: Any, edited: Edit) -> None:
        path = desk.write(self.ITEMS, "here/items.jsonl")

        loaded = desk.load(desk.spec, "dataset.items={file: here/items.jsonl}")

        assert loaded.resolved["dataset"]["items"]["file"] == str(path)

    def test_one_that_changed_is_refused(self, desk: Any, edited: Edit) -> None:
        desk.write(self.ITEMS, "items.jsonl")

        (problem,) = desk.problems(self.spec(edited, "{file: items.jsonl, sha256: " + "a" * 64 + "}"))

        assert "has changed" in problem.message
        assert problem.path == "dataset.items.sha256"

    def test_the_text_of_a_warm_up_is_hashed_too(self, desk: Any, edited: Edit) -> None:
        desk.write("Hello.", "text.txt")
        text = edited(
            ("    template: The best one is {lang}.\n    slots: {lang: {Go: 3, Rust: 1}}\n", "    file: text.txt\n"),
        )

        warmup = desk.load(text).resolved["model"]["warmup"]

        assert warmup["file"] == str(desk.folder / "text.txt")
        assert warmup["file_sha256"] == hashlib.sha256(b"Hello.").hexdigest()

    def test_a_local_model_is_found_beside_the_spec(self, desk: Any) -> None:
        (desk.folder / "models" / "mine").mkdir(parents=True)
        desk.write(RECURVE, "datasets/best_lang.yaml")
        for name in ("models/mine", "./models/mine"):
            loaded = desk.load(SMALL.replace("meta-llama/Llama-3.2-1B-Instruct", name))

            assert loaded.experiment.model.name == str(desk.folder / "models" / "mine")

    def test_a_data_file_that_hangs_is_not_opened(self, desk: Any, edited: Edit) -> None:
        os.mkfifo(desk.folder / "items.jsonl")

        (problem,) = desk.problems(self.spec(edited, "{file: items.jsonl}"))

        assert "items.jsonl" in problem.message


class TestExtends:
    def test_blocks_are_merged_and_lists_replaced(self, desk: Any) -> None:
        desk.write(desk.spec, "base.yaml")
        text = """\
extends: base.yaml
name: child
dataset:
  items: [{prompt: Other., answer: Go}]
algorithm: {ranker: {lr: 0.5}}
"""
        loaded = desk.load(text)

        assert loaded.experiment.name == "child"
        assert [item.answer for item in loaded.experiment.dataset.items] == ["Go"]
        ranker = loaded.experiment.algorithm.ranker
        assert (ranker.lr, ranker.candidates, loaded.experiment.algorithm.iterations) == (0.5, 8, 60)
        assert [path.name for path in loaded.files] == ["spec.yaml", "base.yaml"]
        assert loaded.source == text
        assert "extends" not in loaded.resolved
        assert "extends" not in loaded.set_paths
        assert Path(loaded.origin["algorithm.iterations"].file).name == "base.yaml"
        assert Path(loaded.origin["algorithm.ranker.lr"].file).name == "spec.yaml"

    def test_of_several_the_last_wins_and_chains_are_followed(self, desk: Any) -> None:
        desk.write(desk.spec, "deep/base.yaml")
        desk.write("extends: base.yaml\nseed: 1\nnotes: a\n", "deep/a.yaml")
        desk.write("seed: 2\n", "b.yaml")

        loaded = desk.load("extends: [deep/a.yaml, b.yaml]\nname: c\n")

        assert (loaded.experiment.seed, loaded.experiment.notes, loaded.experiment.name) == (2, "a", "c")

    def test_another_algorithm_starts_afresh(self, desk: Any) -> None:
        desk.write(desk.spec, "base.yaml")

        for text in ("algorithm: {name: ppo, epochs: 3}", "algorithm: ppo"):
            loaded = desk.load(f"extends: base.yaml\n{text}\n")
            assert loaded.experiment.algorithm.name == "ppo"
            assert loaded.experiment.algorithm.iterations == 40

    def test_a_word_below_a_block_is_its_name(self, desk: Any) -> None:
        desk.write(RECURVE, "datasets/best_lang.yaml")
        desk.write(SMALL, "base.yaml")

        loaded = desk.load("extends: base.yaml\nalgorithm: {iterations: 5}\nmodel: {lora: {r: 4}}\n")

        assert (loaded.experiment.algorithm.name, loaded.experiment.algorithm.iterations) == ("archer", 5)
        assert (loaded.experiment.model.name, loaded.experiment.model.lora.r) == ("meta-llama/Llama-3.2-1B-Instruct", 4)

    def test_null_takes_a_setting_back(self, desk: Any) -> None:
        desk.write(desk.spec, "base.yaml")

        loaded = desk.load("extends: base.yaml\nmodel: {name: gpt2, warmup: null}\nhardware: {timeout: null}\n")

        assert loaded.experiment.model.warmup is None
        assert loaded.experiment.hardware.timeout is None

    def test_a_circle_is_refused(self, desk: Any) -> None:
        desk.write("extends: b.yaml\n", "a.yaml")
        desk.write("extends: spec.yaml\n", "b.yaml")

        (problem,) = desk.problems("extends: a.yaml\n")

        assert "spec.yaml → a.yaml → b.yaml → spec.yaml" in problem.message
        assert (problem.line, problem.column) == (1, 10)

    def test_a_missing_layer_is_the_only_problem(self, desk: Any) -> None:
        desk.write(desk.spec, "base.yaml")

        (problem,) = desk.problems("name: a\nextends: bsae.yaml\n")

        assert (problem.line, problem.column) == (2, 10)
        assert "Did you mean base.yaml?" in problem.message

    def test_a_mistake_is_located_in_the_layer_that_made_it(self, desk: Any, edited: Edit) -> None:
        base = desk.write(edited(("seed: 0", "seed: x"), ("iterations: 60", "iterations: 0")), "base.yaml")

        problems = desk.problems("extends: base.yaml\nalgorithm: {iterations: -1}\n")

        assert [(p.path, Path(p.file).name, p.line) for p in problems] == [
            ("seed", base.name, 4),
            ("algorithm.iterations", "spec.yaml", 2),
        ]


class TestOverrides:
    def test_they_are_laid_over_the_file(self, desk: Any) -> None:
        loaded = desk.load(desk.spec, "seed=7", "algorithm.ranker.lr=1e-2", "tags=[a, b]", "dataset.items.0.answer=Go")

        assert loaded.experiment.seed == 7
        assert loaded.experiment.tags == ("a", "b")
        assert (loaded.experiment.algorithm.ranker.lr, loaded.experiment.algorithm.ranker.candidates) == (0.01, 8)
        assert [(i.prompt, i.answer) for i in loaded.experiment.dataset.items] == [("Name the best language.", "Go")]
        assert loaded.overrides == ("seed=7", "algorithm.ranker.lr=1e-2", "tags=[a, b]", "dataset.items.0.answer=Go")
        assert {"seed", "algorithm.ranker.lr"} <= loaded.set_paths
        assert loaded.origin["seed"].override == "seed=7"
        assert loaded.source == desk.spec

    def test_their_order_does_not_count(self, desk: Any) -> None:
        one = desk.load(desk.spec, "algorithm.name=ppo", "algorithm.epochs=5")
        other = desk.load(desk.spec, "algorithm.epochs=5", "algorithm.name=ppo")

        assert one.experiment == other.experiment
        assert one.experiment.algorithm.epochs == 5

    def test_a_mistake_names_the_override(self, desk: Any) -> None:
        problems = desk.problems(
            desk.spec, ["sed=1", "algorithm.ranker.candidates=many", "dataset.items.4.answer=Go", "x"]
        )

        assert [problem.file for problem in problems] == [None] * 4
        said = "\n".join(problem.message for problem in problems)
        for words in (
            "'sed=1'",
            "Did you mean 'seed'?",
            "'algorithm.ranker.candidates=many'",
            "not the text 'many'",
            "'x'",
        ):
            assert words in said
        assert "'dataset.items.4.answer=Go'" in said

    def test_what_is_missing_is_said_of_the_file(self, desk: Any, edited: Edit) -> None:
        (problem,) = desk.problems(edited(("name: best_lang\n", "")), ["seed=1"])

        assert (problem.message, problem.line) == ("name is missing: add it", 1)

    def test_a_sweep_is_no_single_experiment(self, desk: Any) -> None:
        (problem,) = desk.problems(desk.spec, ["seed=1,2"])

        assert "sweep" in problem.message


class TestSweep:
    GRID = "sweep:\n  grid:\n    seed: [0, 1]\n    algorithm.ranker.candidates: [2, 4, 8]\n"

    def test_every_combination_is_a_variant(self, desk: Any) -> None:
        loaded = desk.load(desk.spec + self.GRID, "notes=x")

        variants = loaded.variants()

        points = [(v.experiment.seed, v.experiment.algorithm.ranker.candidates) for v in variants]
        assert points == [(0, 2), (0, 4), (0, 8), (1, 2), (1, 4), (1, 8)]
        assert variants[4].overrides == ("notes=x", "seed=1", "algorithm.ranker.candidates=4")
        assert {v.experiment.notes for v in variants} == {"x"}
        assert loaded.sweep == {"seed": (0, 1), "algorithm.ranker.candidates": (2, 4, 8)}
        assert loaded.experiment == variants[0].experiment
        assert "sweep" not in loaded.resolved
        assert not {path for path in loaded.set_paths if path.startswith("sweep")}

    def test_a_variant_can_be_written_as_overrides(self, desk: Any) -> None:
        for variant in desk.load(desk.spec + self.GRID).variants():
            assert desk.load(desk.spec, *variant.overrides).experiment == variant.experiment

    def test_it_may_choose_the_method(self, desk: Any) -> None:
        variants = desk.load(desk.spec + "sweep: {grid: {algorithm: [archer, {name: ppo, epochs: 5}]}}\n").variants()

        assert [v.experiment.algorithm.name for v in variants] == ["archer", "ppo"]

    def test_a_mistake_is_said_once_or_of_its_variant(self, desk: Any, edited: Edit) -> None:
        text = edited(("every: 10", "every: x")) + "sweep: {grid: {seed: [0, no], notes: [a, b]}}\n"

        problems = desk.problems(text)

        assert [problem.path for problem in problems] == ["evaluation.every", "seed", "seed"]
        assert problems[1].message.startswith('with seed="no" notes="a": seed must be')
        assert problems[1].line == len(text.splitlines())

    def test_null_on_the_command_line_turns_it_off(self, desk: Any) -> None:
        assert len(desk.load(desk.spec + self.GRID, "sweep=null").variants()) == 1

    @pytest.mark.parametrize(
        "block",
        [
            "3",
            "{grid: {}}",
            "{grid: [1]}",
            "{random: {}}",
            "{grid: {seed: 1}}",
            "{grid: {seed: []}}",
            "{grid: {algorithm: {lr: [1]}}}",
            f"{{grid: {{seed: {list(range(32))}, priority: {list(range(32))}}}}}",
        ],
    )
    def test_what_is_no_sweep(self, desk: Any, block: str) -> None:
        problems = desk.problems(desk.spec + f"sweep: {block}\n")

        assert all(problem.path.startswith("sweep") and problem.line for problem in problems)
