"""Supervised fine-tuning: what is learnt in which order, where it resumes, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import DataError, SpecError
from engine.lm.prefetch import Ahead
from engine.methods import registry
from engine.methods.sft import plan, stages
from engine.methods.sft.config import SFT, Data
from engine.methods.sft.examples import conversations, written_texts
from engine.methods.supervised import course
from engine.methods.supervised.course import Schedule
from engine.plan.hashing import cache_key
from engine.runtime.local import LocalContext
from engine.spec.load import load
from tests.conftest import SHARED_DATA
from tests.methods.conftest import DATASET, weights, whole_and_in_parts

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


def test_batches_made_ahead_change_no_bit_and_their_thread_ends(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = algorithm(batch_size=2, batch_tokens=1)  # two parts a step
    plain = stage(cut, name="plain")
    stages.train(plain)
    monkeypatch.setattr(course, "made_ahead", lambda source, device: closing(Ahead(source)))

    whole, last = whole_and_in_parts(stage, stages.train, cut)

    assert weights(whole.output_dir) == weights(last.output_dir) == weights(plain.output_dir)
    assert whole.fingerprints == plain.fingerprints
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]

    monkeypatch.setattr(stages, "collate", lambda examples: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stages.train(stage(cut, name="failing"))
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]


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


WORDS = {"template": "It is {word}.", "slots": {"word": {"red": 1.0, "blue": 3.0}}}


def texts_of(stage: Any, data: dict[str, Any], **more: Any) -> list[Any]:
    return written_texts(stage(algorithm(data=data), **more), Data.model_validate(data))


def test_texts_of_a_template_are_said_after_the_prompts_of_training_items(stage: Any) -> None:
    drawn, again = (texts_of(stage, {**WORDS, "examples": 400}) for _ in range(2))

    assert drawn == again
    assert {messages[0]["content"] for messages in drawn} == {"Say a word.", "Say it again."}
    assert all([message["role"] for message in messages] == ["user", "assistant"] for messages in drawn)
    said = Counter(messages[1]["content"] for messages in drawn)
    assert set(said) == {"It is red.", "It is blue."}
    assert said["It is blue."] / 400 == pytest.approx(0.75, abs=0.08)  # over 3 standard errors


def test_every_answer_of_a_file_is_learnt_once_unless_a_number_is_drawn(stage: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    rows = [{"completion": "one"}, {"prompt": "Two?", "completion": "two"}, {"completion": "three"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    once = texts_of(stage, {"file": str(file)})
    drawn = texts_of(stage, {"file": str(file), "examples": 50})

    assert [messages[-1]["content"] for messages in once] == ["one", "two", "three"]
    assert once[1][0]["content"] == "Two?"
    assert {once[0][0]["content"], once[2][0]["content"]} <= {"Say a word.", "Say it again."}
    assert len(drawn) == 50


def test_a_file_with_its_own_prompts_needs_none_of_the_dataset(stage: Any, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"prompt": "Two?", "completion": "two"}\n')
    talk = {**DATASET, "items": [TALK], "splits": {}}

    (only,) = texts_of(stage, {"file": str(file)}, dataset=talk)
    assert [message["content"] for message in only] == ["Two?", "two"]

    with pytest.raises(SpecError, match=r"algorithm\.data needs items that begin with a `prompt`"):
        texts_of(stage, WORDS, dataset=talk)


def test_rows_of_messages_are_sent_to_the_items(stage: Any, tmp_path: Path) -> None:
    file = tmp_path / "talks.jsonl"
    file.write_text(json.dumps(TALK) + "\n")
    with pytest.raises(DataError, match=r"talks\.jsonl:1 is a whole conversation: name this file as dataset\.items"):
        texts_of(stage, {"file": str(file)})


def test_the_environment_replies_to_utterances(tmp_path: Path) -> None:
    class Echo:
        has_reply = True

        def done(self, texts: list[str]) -> list[bool]:
            return [False for _ in texts]

        def reply(self, texts: list[str], answers: list[Any]) -> list[str]:
            return [f"no, {answer}" for answer in answers]

    data = Data(utterances={"hot?": 1.0}, turns=2, examples=5)
    ctx = LocalContext({"dataset": DATASET}, 3, tmp_path, functions=Echo())  # type: ignore[arg-type]  # all it is asked
    for messages in written_texts(ctx, data):
        answer = {"Say a word.": "x", "Say it again.": "y"}[messages[0]["content"]]
        assert [m["content"] for m in messages[1:]] == ["hot?", f"no, {answer}", "hot?"]
        assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]


def test_what_the_text_says_is_learnt_and_items_evaluate(stage: Any) -> None:
    items = [{"prompt": "Say a word.", "answer": 7}, {"prompt": "Say it again.", "answer": "It is blue."}]
    dataset = {**DATASET, "items": items, "splits": {"unanswered": [{"prompt": "Say more.", "answer": None}]}}
    config = algorithm(data={"template": "It is blue.", "examples": 8}, steps=30, batch_size=4)
    ctx = stage(config, dataset=dataset, every=15)

    stages.train(ctx)

    splits = {(evaluation.split, tuple(item.item for item in evaluation.items)) for evaluation in ctx.evaluations}
    assert splits == {("train", (1,))}  # the item that has a text, under its own number
    curve = dict(ctx.curve("logp"))
    assert curve[30] > curve[0] + 1.0


def test_a_new_models_tokenizer_knows_the_text(tmp_path: Path) -> None:
    data = {"template": "Brobdingnagian {x}", "slots": {"x": ["a", "b"]}, "examples": 64}
    config = {"dataset": DATASET, "model": {"name": "scratch:llama-nano"}, "algorithm": {"data": data}}
    ctx = LocalContext(config, 3, tmp_path / "model")

    stages.prepare(ctx)

    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(words.encode("Brobdingnagian", add_special_tokens=False)) == 1


def test_the_best_checkpoint_cannot_be_chosen_by_items_without_text(stage: Any) -> None:
    dataset = {**DATASET, "splits": {"unanswered": [{"prompt": "Say more.", "answer": None}]}}
    ctx = stage(algorithm(data=WORDS, best_by="unanswered"), dataset=dataset)
    with pytest.raises(DataError, match="no item of the split 'unanswered' has a text"):
        stages.train(ctx)


def test_the_tiny_twin_draws_few_texts() -> None:
    twin = plan.tiny(SFT(data=Data(template="x")))
    assert twin.data is not None
    assert twin.data.examples == 64
    assert plan.tiny(SFT(data=Data(file="a.txt"))).data == Data(file="a.txt")


TEXT_SPEC = """
version: 1
name: a
dataset: {items: [{prompt: Which is best?}]}
algorithm: {name: sft, data: %s}
model: scratch:llama-nano
"""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{}", "data needs a text to learn"),
        ("{template: '{x}'}", "is not one of the slots"),
        ("{utterances: {Is it hot: 1}}", "answered by the dataset's reply_fn, and there is none"),
        ("{file: nowhere.txt}", "there is no file"),
        ("null", "it has to be text. Or say with `algorithm.data` what is learnt"),
    ],
)
def test_text_that_cannot_be_learnt_is_refused_when_the_spec_is_read(tmp_path: Path, data: str, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(TEXT_SPEC % data)
    with pytest.raises(SpecError) as refused:
        load(path, methods=registry.configs())
    assert said in str(refused.value)


def test_the_key_of_what_is_learnt_follows_the_files_content_and_not_its_place(tmp_path: Path) -> None:
    keys = []
    for folder, text in (("a", "Rust"), ("b", "Rust"), ("c", "Go")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(text)
        (tmp_path / folder / "spec.yaml").write_text(TEXT_SPEC % "{file: text.txt}")
        loaded = load(tmp_path / folder / "spec.yaml", methods=registry.configs())
        stages_of = {stage.name: stage for stage in registry.plan(loaded.experiment, loaded.set_paths).stages}
        keys.append((cache_key(stages_of["model"], 0, {}), cache_key(stages_of["train"], 0, {"model": "0"})))
    assert keys[0] == keys[1]
    assert keys[0][0] != keys[2][0]
    assert keys[0][1] != keys[2][1]


def test_a_spec_without_text_keeps_the_keys_that_it_had() -> None:
    assert "data" not in SFT().model_dump(mode="json")
    assert "data" in SFT(data=Data(template="x")).model_dump(mode="json")


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
