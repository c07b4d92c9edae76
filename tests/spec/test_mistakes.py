"""Forty mistakes that people make, one at a time: each is located and says what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# what is mistaken: (what stands in the spec, what they wrote, where it is found, what is said)
MISTAKES: dict[str, tuple[str, str, str, str]] = {
    "key misspelt": ("candidates: 8", "candidats: 8", "candidats", "Did you mean 'candidates'?"),
    "key misspelt at the top": ("seed: 0", "sed: 0", "sed", "Did you mean 'seed'?"),
    "required key misspelt": ("  items:", "  item:", "item:", "Did you mean 'items'?"),
    "key with a dash": ("main_prompt:", "main-prompt:", "main-prompt", "Did you mean 'main_prompt'?"),
    "key in camel case": ("runs_per_item", "runsPerItem", "runsPerItem", "Did you mean 'runs_per_item'?"),
    "key in capitals": ("seed: 0", "Seed: 0", "Seed", "Did you mean 'seed'?"),
    "another library's word": ("{candidates: 8}", "{learning_rate: 0.1}", "learning_rate", "Did you mean 'lr'?"),
    "key one level too high": (
        "  iterations: 60",
        "  candidates: 4",
        "candidates: 4",
        "It belongs to algorithm.ranker",
    ),
    "key one level too low": ("{candidates: 8}", "{iterations: 8}", "iterations", "It belongs to algorithm"),
    "key of a block at the top": ("seed: 0", "gpus: 1", "gpus: 1", "It belongs to hardware"),
    "unknown key, nothing like it": ("seed: 0", "colour: red", "colour", "Its keys are version, name,"),
    "key twice": ("seed: 0", "seed: 0\nseed: 1", "seed: 1", "stands here twice, first in line 4"),
    "no version": ("version: 1\n", "", "name", "begin the spec with `version: 1`"),
    "version as text": ("version: 1", "version: '1'", "'1'", "write `version: 1`"),
    "version to come": ("version: 1", "version: 2", "2", "upgrade rlx"),
    "name with dashes": ("name: best_lang", "name: Best-Lang", "Best-Lang", "Did you mean 'best_lang'?"),
    "no name": ("name: best_lang\n", "", "version", "name is missing"),
    "number in quotes": ("iterations: 60", 'iterations: "60"', '"60"', "write 60 without quotes"),
    "number with an underscore": ("iterations: 60", "iterations: 1_000", "1_000", "write 1000"),
    "fraction for a count": ("iterations: 60", "iterations: 60.0", "60.0", "write 60"),
    "word for a number": ("every: 10", "every: often", "often", "must be a whole number, not the text 'often'"),
    "minus one for no limit": ("{candidates: 8}", "{clip: -1}", "-1", "write null"),
    "None for null": ("{candidates: 8}", "{clip: None}", "None", "write null"),
    "yes for true": ("{candidates: 8}", "{sigmoid: yes}", "yes", "write true"),
    "zero where one is the least": ("every: 10", "every: 0", "0,", "must be at least 1, not 0"),
    "negative rate": ("{candidates: 8}", "{lr: -0.1}", "-0.1", "must be more than 0"),
    "number for a text": ("answer: Rust\n", "answer: Rust\n  system_prompt: 42\n", "42", 'put it in quotes, "42"'),
    "text for a list": ("seed: 0", "tags: fast", "fast", "write [fast]"),
    "list for a block": ("{candidates: 8}", "[8]", "[8]", "must be a block of `key: value`, not a list"),
    "empty value": ("  iterations: 60", "  iterations:", "", "algorithm.iterations is empty"),
    "choice misspelt": ("{candidates: 8}", "{kind: dqm}", "dqm", "Did you mean 'dqn'?"),
    "choice nothing like it": (
        "launcher: single",
        "launcher: slurm",
        "slurm",
        "It is one of single, torchrun, deepspeed",
    ),
    "method misspelt": ("name: archer", "name: archr", "archr", "Did you mean 'archer'?"),
    "method without a name": ("  name: archer\n", "", "algorithm", "algorithm needs a name: archer or ppo"),
    "preset misspelt": ("scratch:llama-nano", "scratch:lama-nano", "scratch:lama", "Did you mean scratch:llama-nano?"),
    "scheme misspelt": ("scratch:llama-nano", "scrach:llama-nano", "scrach:", "Did you mean scratch:llama-nano?"),
    "duration in words": ("timeout: 2h", "timeout: 2 hours", "2 hours", "write 45s, 30m"),
    "retries of the spec's own error": (
        "seed: 0",
        "retries: {spec_error: 3}",
        "3}",
        "spec_error is never retried",
    ),
    "retries of a preemption": ("seed: 0", "retries: {preempted: 3}", "3}", "costs no attempt"),
    "slot misspelt": ("is {lang}.", "is {lng}.", "The best", "Did you mean {lang}?"),
    "slot that no text uses": ("is {lang}.", "is Go.", "lang: {Go", "no text uses {lang}"),
    "empty list of items": (
        "    - prompt: Name the best language.\n      answer: Rust\n",
        "    []\n",
        "[]",
        "at least 1 entry",
    ),
    "item without its dash": (
        "    - prompt: Name the best language.",
        "      prompt: Name.",
        "prompt: Name.",
        "`- prompt: …`",
    ),
    "prompt called question": ("- prompt: Name", "- question: Name", "question", "Did you mean 'prompt'?"),
    "split that is not there": ("{every: 10,", "{splits: [tran],", "tran", "Did you mean 'train'?"),
    "function misspelt": ("def done_fn", "def donefn", "def donefn", "Rename 'donefn'"),
    "function of too few arguments": (
        "score_fn(text: str, answer: str)",
        "score_fn(text: str)",
        "def score_fn",
        "takes no answer",
    ),
    "function of too many arguments": (
        "done_fn(text: str)",
        "done_fn(text: str, limit)",
        "limit)",
        "nothing for 'limit'",
    ),
    "function with a syntax error": ("def done_fn(text: str):", "def done_fn(text: str)", "", "expected ':'"),
    "no score function": (
        "  score_fn: |\n    def score_fn(text: str, answer: str):\n        return answer in text\n",
        "",
        "dataset:",
        "archer needs dataset.score_fn",
    ),
    "tab": ("  iterations: 60", "\titerations: 60", "\t", "spaces only"),
    "bad indentation": ("  iterations: 60", "   iterations: 60", "", "indentation"),
    "colon in a text": ("description: Teach a", "description: Teach: a", ": a", "quotes"),
    "quote left open": ("description: Teach", "description: 'Teach", "'Teach", "never closed"),
    "secret in an unknown form": ("seed: 0", "notes: ${HF_TOKEN}", "${HF", "${env:NAME}"),
}
Edit = Callable[..., str]


@pytest.mark.parametrize("name", MISTAKES)
def test_one_problem_with_its_place_and_a_way_out(name: str, desk: Any, edited: Edit) -> None:
    old, new, place, words = MISTAKES[name]
    text = edited((old, new))

    problems = desk.problems(text)

    assert [problem.message for problem in problems if words in problem.message] == [problems[0].message]
    assert len(problems) == 1
    problem = problems[0]
    assert problem.file == str(desk.folder / "spec.yaml")
    assert problem.line is not None
    assert problem.column is not None
    assert text.splitlines()[problem.line - 1][problem.column - 1 :].startswith(place)


def test_all_of_them_are_said_at_once(desk: Any, edited: Edit) -> None:
    text = edited(
        ("name: best_lang", "name: best lang"),
        ("seed: 0", "sed: 0"),
        ("answer: Rust", "anser: Rust"),
        ("def done_fn(text: str)", "def done_fn()"),
        ("name: archer", "name: acher"),
        ("candidates: 8", "candidates: eight"),
        ("gpus: 0", "gpus: many"),
        ("every: 10", "evry: 10"),
    )

    problems = desk.problems(text)

    paths = ["name", "sed", "dataset.items.0.anser", "dataset.done_fn", "algorithm.name", "algorithm.ranker.candidates"]
    assert [problem.path for problem in problems] == [*paths, "hardware.gpus", "evaluation.evry"]
    assert [problem.line for problem in problems] == sorted(problem.line for problem in problems)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("{file: a.jsonl, hub: x/y, split: train}", "not both"),
        ("{limit: 3}", "either `file` or `hub`"),
        ("{hub: x/y}", "split: train"),
        ("{hub: x/y, split: train, format: csv}", "format is for a file"),
        ("{file: spec.yaml, split: train}", "split is for a hub dataset"),
        ("{file: spec.txt}", "say its `format`"),
        ("{file: absent.jsonl}", "there is no file"),
        ("5", "must be a list of items"),
    ],
)
def test_sources_of_items(block: str, words: str, desk: Any, edited: Edit) -> None:
    text = edited(("  items:\n    - prompt: Name the best language.\n      answer: Rust\n", f"  items: {block}\n"))
    desk.write("", "spec.txt")

    problems = desk.problems(text)

    assert any(words in problem.message for problem in problems)
    assert {problem.line for problem in problems} == {7}


@pytest.mark.parametrize(
    ("warmup", "words"),
    [
        ("{}", "one of `template`, `utterances` or `file`"),
        ("{template: a, utterances: {b: 1}}", "exclude each other"),
        ("{utterances: {Is it {x}?: 1}}", "quotes"),
        ("{utterances: {b: 1}}", "reply_fn"),
        ("{utterances: {b: 0}}", "more than 0"),
        ("{utterances: {}}", "at least 1 entry"),
        ("{template: '{a}', slots: {a: x}}", "must be a list of texts"),
        ("{template: '{a}', slots: {a: [1]}}", 'put it in quotes, "1"'),
        ("{template: '{a}', slots: {a: {x: -1}}}", "more than 0"),
        ("{template: x, file_sha256: " + "a" * 64 + "}", "goes with `file`"),
        ("{file: nope.txt}", "there is no file"),
    ],
)
def test_warm_up_texts(warmup: str, words: str, desk: Any, edited: Edit) -> None:
    text = edited(
        (
            "  warmup:\n    template: The best one is {lang}.\n    slots: {lang: {Go: 3, Rust: 1}}\n",
            f"  warmup: {warmup}\n",
        )
    )

    problems = desk.problems(text)

    assert words in "\n".join(problem.message for problem in problems)
    line = text.splitlines().index(f"  warmup: {warmup}") + 1
    assert {problem.line for problem in problems} == {line}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("'run:'", "run:<handle>@<label>"),
        ("'scratch:'", "no preset"),
        ("'tiny:'", "tiny:<hub id>"),
        ("a b", "is no model"),
        ("''", "is no model"),
        ("./nowhere", "there is no directory"),
        ("gpt2", "has learnt its text already"),
    ],
)
def test_models(name: str, words: str, desk: Any, edited: Edit) -> None:
    problems = desk.problems(edited(("scratch:llama-nano", name)))

    assert words in problems[0].message
    assert {problem.path for problem in problems} <= {"model.name", "model.warmup"}


@pytest.mark.parametrize(
    ("said", "path", "words"),
    [
        ("device: cpu, gpus: 2", "hardware.gpus", "leaves 2 GPUs idle"),
        ("gpus: 2, zero: 3", "hardware.zero", "goes with launcher: deepspeed, not single"),
        ("processes: 2", "hardware.processes", "goes with launcher: torchrun or deepspeed"),
        ("launcher: torchrun", "hardware.launcher", "set gpus, or processes"),
        ("nodes: 2", "hardware.nodes", "goes with launcher: torchrun or deepspeed"),
        ("launcher: torchrun, nodes: 2", "hardware.launcher", "set gpus, or processes"),
        ("launcher: torchrun, gpus: 2, processes: 4", "hardware.processes", "each rank has one"),
        ("launcher: torchrun, gpus: 2, offload: all", "hardware.offload", "goes with launcher: deepspeed"),
        ("launcher: deepspeed, gpus: 2, parallel: fsdp", "hardware.parallel", "goes with launcher: torchrun"),
        ("launcher: deepspeed, gpus: 2, compile: true", "hardware.compile", "goes with launcher: single or torchrun"),
        ("launcher: deepspeed, gpus: 2, offload: all", "hardware.offload", "shards none: write zero: 3"),
        ("gpus: 2, stages: {train: {zero: 3}}", "hardware.stages.train.zero", "goes with launcher: deepspeed"),
    ],
)
def test_hardware_that_contradicts_itself(said: str, path: str, words: str, desk: Any, edited: Edit) -> None:
    whole = "hardware: {device: auto, gpus: 0, launcher: single, precision: auto, queue: default, timeout: 2h}"

    (problem,) = desk.problems(edited((whole, f"hardware: {{{said}}}")))

    assert problem.path == path
    assert words in problem.message


@pytest.mark.parametrize(
    "said",
    [
        "launcher: deepspeed, gpus: 2, zero: 3, offload: all, stages: {train: {launcher: single}}",
        "gpus: 2, stages: {train: {launcher: torchrun, parallel: fsdp}}",
        "launcher: torchrun, processes: 2, stages: {train: {launcher: deepspeed, zero: 1}}",
    ],
)
def test_hardware_whose_stages_differ_from_the_run(said: str, desk: Any, edited: Edit) -> None:
    whole = "hardware: {device: auto, gpus: 0, launcher: single, precision: auto, queue: default, timeout: 2h}"

    spec = desk.load(edited((whole, f"hardware: {{{said}}}"))).experiment

    assert type(spec).model_validate_json(spec.model_dump_json()).hardware == spec.hardware


def test_a_missing_spec_offers_its_neighbour(desk: Any) -> None:
    from engine.errors import SpecError
    from engine.spec.load import load

    desk.write()
    with pytest.raises(SpecError, match=r"there is no file .*spce.yaml. Did you mean spec.yaml\?"):
        load(desk.folder / "spce.yaml", methods=desk.methods)


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "42"])
def test_what_is_no_spec_at_all(text: str, desk: Any) -> None:
    (problem,) = desk.problems(text)

    assert "block of `key: value`" in problem.message
    assert problem.line == 1


def test_very_many_mistakes_are_cut_short(desk: Any, edited: Edit) -> None:
    items = "\n".join("    - {promt: x}" for _ in range(500))
    problems = desk.problems(edited(("    - prompt: Name the best language.\n      answer: Rust", items)))

    assert len(problems) == 101
    assert problems[-1].message == "and 400 more problems"
