"""The warm-up: what text is drawn, which tokens are learnt, and that a broken-off one ends where a whole one does."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError, ModelError, SpecError
from engine.lm.chat import decode
from engine.lm.hf import HFSampler
from engine.lm.noise import NoiseKey
from engine.lm.policy import load_policy
from engine.lm.sampler import SamplingParams
from engine.lm.warmup import example, prepare, source_of
from engine.lm.warmup_text import Conversation, Filler, Task, Turn, Weighted, conversations, read_answers
from engine.runtime.context import Stopped
from engine.runtime.local import LocalContext
from engine.spec.model import Warmup

DATASET = {"system_prompt": "Be brief.", "main_prompt": "", "items": [{"prompt": "Which?", "answer": "Rust"}]}
TEMPLATE = {"template": "It is {x}.", "slots": {"x": {"Rust": 1.0, "C": 3.0}}}


def config(name="scratch:llama-nano", **warmup):
    model = {"name": name, "warmup": {**TEMPLATE, "examples": 60, **warmup} if warmup else None}
    return {"model": model, "dataset": DATASET}


class Twenty:
    """Functions of a game: the environment answers with the length of what was said; over after three answers."""

    has_reply = True
    hash = "0"

    def __init__(self):
        self.texts = []

    def done(self, texts):
        self.texts += texts
        return [text.count("<|start_header_id|>assistant") >= 4 or "!" in text for text in texts]

    def reply(self, texts, answers):
        return [f"{len(text.split('assistant')[-1])} {answer}" for text, answer in zip(texts, answers, strict=True)]


def test_alternatives_are_drawn_by_their_weights():
    rng = np.random.default_rng(0)
    weighted = Weighted({"a": 1.0, "b": 3.0, "c": 0.0}, "here")

    counts = Counter(weighted.draw(rng) for _ in range(4000))

    assert set(counts) == {"a", "b"}
    assert counts["b"] / 4000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("options", [[], {"a": 0.0}, {"a": -1.0, "b": 2.0}])
def test_weights_that_cannot_be_drawn_from_are_refused(options):
    with pytest.raises(SpecError, match="here needs alternatives"):
        Weighted(options, "here")


@given(st.integers(0, 1000))
def test_each_occurrence_of_a_slot_is_drawn_for_itself_and_other_braces_are_text(seed):
    filler = Filler({"x": ["1", "2", "3"]}, "here")

    text = filler.fill("{x}{x}{x} {} { x }", np.random.default_rng(seed))

    assert text.endswith(" {} { x }")
    assert set(text[:3]) <= set("123")


def test_a_slot_that_nobody_declared_is_named():
    with pytest.raises(SpecError, match=r"asks for \{y\}, but slots declares x"):
        Filler({"x": ["1"]}, "here").fill("{y}", np.random.default_rng(0))


def play(warmup, functions):
    return conversations(
        warmup,
        [Task("Which?", 7)],
        examples=warmup.examples,
        opening={"Which?": "<|start_header_id|>assistant"},
        bridge=lambda reply: f"[{reply}]<|start_header_id|>assistant",
        functions=functions,
        rng=np.random.default_rng(0),
    )


def test_the_environment_answers_what_was_said_until_the_game_is_over():
    warmup = Warmup(utterances={"ab": 1.0, "abc": 1.0, "end!": 1.0}, examples=50, turns=8)
    functions = Twenty()

    talks = play(warmup, functions)

    assert len(talks) == 50
    for talk in talks:
        said = [turn.said for turn in talk.turns]
        assert len(said) == (said.index("end!") + 1 if "end!" in said else 3)
        replies = [f"{len(text)} 7" for text in said]
        assert [turn.reply for turn in talk.turns] == ([*replies[:-1], None] if "end!" in said else replies)
    assert any(
        text.startswith("<|start_header_id|>assistantab[2 7]<|start_header_id|>assistant") for text in functions.texts
    )


def test_the_number_of_turns_is_bounded():
    talks = play(Warmup(utterances={"ab": 1.0}, examples=3, turns=2), Twenty())

    assert [len(talk.turns) for talk in talks] == [2, 2, 2]
    assert [talk.turns[-1].reply for talk in talks] == [None, None, None]


def test_answers_come_from_text_by_paragraphs_or_from_json_lines(tmp_path):
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("one\ntwo\n\n\nthree\n")
    lines.write_text('{"completion": "four\\u2028five"}\n{"prompt": "Q", "completion": "six"}\n')

    assert read_answers(text) == [(None, "one\ntwo"), (None, "three")]
    assert read_answers(lines) == [(None, "four\u2028five"), ("Q", "six")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n\n", "holds no answers"),
        ("a.jsonl", '{"completion": "x"}\n{"text": "y"}', r"a\.jsonl:2: expected an object with a `completion`"),
        ("a.jsonl", '{"completion": 3}', r"a\.jsonl:1: .*must be text"),
        ("a.jsonl", "no json", r"a\.jsonl:1"),
        ("a.txt", None, "cannot read"),
    ],
)
def test_a_file_without_answers_is_refused_at_its_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)

    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / name)


def test_a_short_warmup_learns_the_shares_of_its_template(tmp_path):
    ctx = LocalContext(config(steps=60, batch_size=16, lr=0.01, examples=600, holdout=0.25), 0, tmp_path / "model")

    prepare(ctx)

    losses = [point.value for point in ctx.points if point.key == "train/loss"]
    [held] = [point.value for point in ctx.points if point.key == "eval/loss"]
    assert len(losses) == 60
    policy = load_policy(source_of(tmp_path / "model"))
    ids = policy.chat_ids("Be brief.", "Which?")
    params = SamplingParams(max_new_tokens=8, eos=(policy.tokenizer.eos_token_id,))
    texts = Counter(c.text for c in HFSampler(policy).generate([ids], 300, params, None, [NoiseKey(0)])[0])
    assert texts["It is C.<|eot_id|>"] / 300 == pytest.approx(0.75, abs=0.12)
    assert texts["It is Rust.<|eot_id|>"] / 300 == pytest.approx(0.25, abs=0.12)
    # the entropy of one draw (¾, ¼), spread over the tokens of "It is C." and its end, is all that stays unknown
    tokens = len(policy.encode("It is C.")) + 1
    assert held == pytest.approx((0.75 * np.log(4 / 3) + 0.25 * np.log(4)) / tokens, abs=0.05)


def test_a_warmup_that_was_stopped_ends_where_a_whole_one_does(tmp_path):
    whole = LocalContext(config(steps=6, batch_size=4), 3, tmp_path / "whole")
    prepare(whole)
    first = LocalContext(config(steps=6, batch_size=4), 3, tmp_path / "a", checkpoint_dir=tmp_path / "kept")
    steps = []
    log = first.log

    def stop_after_three(step, *args, **kwargs):
        log(step, *args, **kwargs)
        steps.append(step)
        if step == 3:
            first.request_stop()

    first.log = stop_after_three
    with pytest.raises(Stopped):
        prepare(first)
    second = LocalContext(config(steps=6, batch_size=4), 3, tmp_path / "b", checkpoint_dir=tmp_path / "kept")
    prepare(second)

    assert steps == [1, 2, 3]
    assert {point.step for point in second.points if point.key == "train/loss"} == {4, 5, 6}
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_utterances_and_their_ends_are_the_models_own_and_replies_are_given(tokenizer):
    talk = Conversation("Which?", (Turn("Is it C?", "no"), Turn("Rust!")))

    made = example(talk, {"Which?": "<|begin_of_text|>open"}, tokenizer)

    own = [token for token, mine in zip(made.rest, made.own, strict=True) if mine]
    assert decode(tokenizer, made.prompt) == "<|begin_of_text|>open"
    assert decode(tokenizer, own) == "Is it C?<|eot_id|>Rust!<|eot_id|>"
    assert decode(tokenizer, made.rest) == (
        "Is it C?<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nno<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nRust!<|eot_id|>"
    )


def test_whole_conversations_are_learnt_on_demand(tokenizer):
    talk = Conversation("Which?", (Turn("Is it C?", "no"), Turn("Rust!")))

    made = example(talk, {"Which?": "<|begin_of_text|>open"}, tokenizer, replies=True)

    assert made.own == [True] * len(made.rest)


def test_a_reply_that_ends_the_game_is_the_last_word():
    class Oracle(Twenty):
        def done(self, texts):
            return [text.endswith("3 7]<|start_header_id|>assistant") for text in texts]

    talks = play(Warmup(utterances={"ab": 1.0, "abc": 1.0}, examples=40, turns=8), Oracle())

    for talk in talks:
        said = [turn.said for turn in talk.turns]
        assert len(said) == (said.index("abc") + 1 if "abc" in said else 8)
        assert talk.turns[-1].reply == ("3 7" if "abc" in said else None)


def test_without_a_warmup_the_weights_are_random_and_the_prompt_is_known(tmp_path):
    ctx = LocalContext(config(), 0, tmp_path / "model")

    prepare(ctx)

    policy = load_policy(tmp_path / "model")
    assert len(policy.tokenizer) <= 490
    assert ctx.points == []


@pytest.mark.parametrize(
    ("name", "extra", "expected"),
    [
        ("org/name@v1", {}, {"path": "org/name", "revision": "v1", "trust_remote_code": False}),
        (
            "run:best-lang-1@best",
            {"model_path": "/there"},
            {"path": "/there", "revision": None, "trust_remote_code": False},
        ),
    ],
)
def test_a_model_that_exists_is_referred_to_and_not_copied(tmp_path, name, extra, expected):
    ctx = LocalContext(config(name), 0, tmp_path / "model", extra=extra)

    prepare(ctx)

    assert [path.name for path in (tmp_path / "model").iterdir()] == ["reference.json"]
    assert json.loads((tmp_path / "model" / "reference.json").read_text()) == expected
    assert vars(source_of(tmp_path / "model")) == expected


def test_a_runs_model_must_have_been_resolved(tmp_path):
    with pytest.raises(ModelError, match="was not resolved"):
        prepare(LocalContext(config("run:best-lang-1"), 0, tmp_path / "model"))


def test_items_that_are_elsewhere_must_be_handed_in(tmp_path):
    away = {**config(), "dataset": {**DATASET, "items": {"file": "items.jsonl"}}}
    with pytest.raises(SpecError, match=r"dataset\.items inline"):
        prepare(LocalContext(away, 0, tmp_path / "a"))

    prepare(LocalContext(away, 0, tmp_path / "b"), [Task("Which?", "Rust")])

    assert (tmp_path / "b" / "model.safetensors").is_file()


def test_replies_can_only_be_learnt_where_there_are_any():
    with pytest.raises(ValueError, match="nobody replies"):
        Warmup(template="Rust", learn="conversation")


def test_a_warmup_without_prompts_is_refused(tmp_path):
    ctx = LocalContext(config(steps=1), 0, tmp_path / "model")

    with pytest.raises(SpecError, match="begin with a `prompt`"):
        prepare(ctx, [])
