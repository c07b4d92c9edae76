"""Supervised fine-tuning: what is learnt in which order, where it resumes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from engine.errors import DataError, SpecError
from engine.methods import registry
from engine.methods.sft import stages
from engine.methods.sft.config import SFT
from engine.methods.sft.examples import conversations
from engine.methods.supervised.course import Schedule
from engine.spec.load import load
from tests.conftest import SHARED_DATA
from tests.methods.conftest import weights, whole_and_in_parts

SMALL = {"steps": 6, "batch_size": 1, "lr": 3e-3, "checkpoint_every": 1, "warmup": 0.2}
TALK = {"messages": [{"role": "user", "content": "Say a word."}, {"role": "assistant", "content": "word"}]}


def algorithm(**changes: Any) -> dict[str, Any]:
    return SFT.model_validate(SMALL | changes).model_dump(mode="json")


def test_every_conversation_is_learnt_once_an_epoch() -> None:
    schedule = Schedule(10, SFT(batch_size=4, epochs=3), seed=5)

    assert schedule.steps == 9
    batches = [schedule.batch(step).tolist() for step in range(1, 10)]
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    epochs = [[index for batch in batches[first : first + 3] for index in batch] for first in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(stage: Any) -> None:
    whole, last = whole_and_in_parts(stage, stages.train, algorithm())

    assert weights(last.output_dir) == weights(whole.output_dir)
    assert AutoModelForCausalLM.from_pretrained(last.output_dir / "best" / "policy") is not None
    losses = [loss for _, loss in whole.curve("train/loss")]
    assert losses[-1] < losses[0]
    assert [step for step, _ in whole.curve("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_how_a_step_is_cut_changes_nothing_but_rounding(stage: Any) -> None:
    cut, whole = (stage(algorithm(batch_size=2, batch_tokens=tokens), name=str(tokens)) for tokens in (1, 10_000))
    for ctx in (cut, whole):
        stages.train(ctx)
    for (_, one), (_, other) in zip(cut.curve("train/loss"), whole.curve("train/loss"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_the_best_checkpoint_is_best_on_the_split_that_was_named(stage: Any) -> None:
    ctx = stage(algorithm(best_by="heldout", steps=12, lr=0.05), name="best", every=2)
    stages.train(ctx)
    curve = dict(ctx.curve("heldout/logp"))
    steps = json.loads((ctx.output_dir / "steps.json").read_text())
    assert steps["best"] == max(curve, key=lambda step: (curve[step], -step))
    assert steps["latest"] == 12


def test_the_final_evaluation_tells_what_was_gained(stage: Any) -> None:
    trained = stage(algorithm(steps=20), name="train")
    stages.train(trained)
    ctx = stage(algorithm(steps=20), name="evaluate", train=trained.output_dir)
    stages.evaluate(ctx)
    means = {(e.metric, e.split): sum(i.scores[0] for i in e.items) / len(e.items) for e in ctx.evaluations}
    assert set(means) == {(f"final/{m}logp", s) for m in ("", "untrained/") for s in ("train", "heldout")}
    assert means["final/logp", "train"] > means["final/untrained/logp", "train"] + 0.5


def test_items_become_conversations() -> None:
    dataset = {
        "main_prompt": "Answer.",
        "system_prompt": "Be brief.",
        "items": [{"prompt": "One?", "answer": "1"}, TALK],
        "splits": {},
    }
    first, second = conversations(dataset)["train"]
    assert [(m["role"], m["content"]) for m in first] == [
        ("system", "Be brief."),
        ("user", "Answer.\nOne?"),
        ("assistant", "1"),
    ]
    assert list(second) == TALK["messages"]  # as it is written: it has its own system message, or none


SHAREGPT = [{"from": "human", "value": "Say a word."}, {"from": "gpt", "value": "word"}]


@pytest.mark.parametrize("said", [TALK["messages"], SHAREGPT], ids=["openai", "sharegpt"])
def test_rows_of_a_file_become_conversations(tmp_path: Path, said: list[dict[str, str]]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"conversations": said, "id": 7}) + "\n")
    source = {"file": str(file), "columns": {"messages": "conversations"}}
    found = conversations({"main_prompt": "", "system_prompt": "", "items": source, "splits": {}})
    assert list(found["train"][0]) == TALK["messages"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "rows.jsonl:1: column 'messages' is not a list of messages"),
        ({"messages": [{"role": "user"}]}, "rows.jsonl:1: column 'messages', message 1 needs a `role` and a `content`"),
        ({"messages": [{"role": "asistant", "content": ""}]}, "did you mean 'assistant'?"),
        ({"messages": [{"role": "user", "content": 3}]}, "its content is 3, not text"),
        ({"prompt": "One?", "answer": 1}, "train:1: sft learns to say the answer to a prompt, and 1 is not text"),
    ],
)
def test_a_row_that_cannot_be_learnt_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as refused:
        conversations({"main_prompt": "", "system_prompt": "", "items": {"file": str(file)}, "splits": {}})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("dataset", "method", "said"),
    [
        ("items: [{prompt: x, messages: [{role: user, content: y}]}]", "sft", "leave out prompt and answer"),
        ("items: [{answer: x}]", "sft", "an item needs a `prompt`, or `messages`"),
        ("items: [{prompt: x, answer: 3}]", "sft", "it has to be text"),
        ("items: [{messages: [{role: user, content: y}]}]", "sft", "the assistant says nothing"),
        (
            "items: [{messages: [{role: assistant, content: y}]}], score_fn: 'def score_fn(text, answer): return 1.0'",
            "sft",
            "score_fn scores what the model says to a `prompt`",
        ),
        (
            "items: [{messages: [{role: assistant, content: y}]}], score_fn: 'def score_fn(text, answer): return 1.0'",
            "reinforce",
            "reinforce begins with a `prompt`: it learns from no conversation",
        ),
        ("items: [{prompt: x, answer: y}]", "{name: sft, best_by: heldout}", "no split called 'heldout'"),
    ],
)
def test_a_spec_that_asks_for_the_impossible_is_refused(tmp_path: Path, dataset: str, method: str, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"version: 1\nname: a\ndataset: {{{dataset}}}\nalgorithm: {method}\nmodel: 'scratch:llama-nano'\n")
    with pytest.raises(SpecError, match=r"spec\.yaml:[34]:") as refused:
        load(path, methods=registry.configs())
    assert said in str(refused.value)


@pytest.mark.shared_data
def test_rows_that_others_wrote_are_read() -> None:
    file = SHARED_DATA / "prompts" / "alpaca_en_demo.json.gz"
    if not file.exists():
        pytest.skip(f"{file.name} is absent")
    source = {"file": str(file), "columns": {"prompt": "instruction", "answer": "output"}}
    found = conversations({"main_prompt": "", "system_prompt": "", "items": source, "splits": {}})["train"]
    assert len(found) == 738
    assert all([m["role"] for m in messages] == ["user", "assistant"] for messages in found)
    assert all(messages[1]["content"] for messages in found)
