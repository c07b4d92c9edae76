"""A reward model's scores: those of the model's own forward, whatever is scored beside; texts and answers alike."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from engine.errors import ModelError
from engine.lm.heads import new_head
from engine.lm.policy import LoraSettings
from engine.lm.reference import Source
from engine.lm.reward_model import RewardModel
from engine.lm.reward_server import Together, score
from engine.runtime.json_server import Rejected

ASKED = [{"role": "user", "content": "what is the best"}]
ANSWERS = ["the cat", "a dog and a bird", "", "the cat sat on the mat"]


def trained(saved: Path, tokenizer: Any, folder: Path, *, outputs: int = 1, lora: LoraSettings | None = None) -> Path:
    """A reward model with a head that is not zero."""
    head = new_head(str(saved), tokenizer, outputs=outputs, lora=lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "score" in name or "lora_B" in name:
                parameter.normal_()
    head.save(folder)
    return folder


def open_model(folder: Path, **more: Any) -> RewardModel:
    return RewardModel(Source(str(folder)), **{"max_tokens": 512, "batch_tokens": 10_000, **more})


@pytest.fixture
def folder(saved: Path, tokenizer: Any, tmp_path: Path) -> Path:
    return trained(saved, tokenizer, tmp_path / "reward")


def text_of(tokenizer: Any, answer: str) -> str:
    return str(tokenizer.apply_chat_template([*ASKED, {"role": "assistant", "content": answer}], tokenize=False))


def test_scores_are_the_classifiers_own(folder: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = []
    for answer in ANSWERS:  # the end of the turn is the last token of the template
        ids = torch.tensor([tokenizer.encode(text_of(tokenizer, answer), add_special_tokens=False)])
        with torch.no_grad():
            expected.append(float(theirs.score(theirs.base_model(ids).last_hidden_state[0, -1])))
    model = open_model(folder)

    found = model.score([model.of_answer(ASKED, answer) for answer in ANSWERS])

    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert len(set(found)) == len(ANSWERS)


def test_a_text_whose_turn_is_not_ended_is_the_same_text(folder: Path, tokenizer: Any) -> None:
    model = open_model(folder)
    for answer in ANSWERS:
        whole = text_of(tokenizer, answer)
        ids = model.of_answer(ASKED, answer)
        assert model.of_text(whole) == ids
        assert model.of_text(whole.removesuffix("<|eot_id|>")) == ids
        assert model.of_text(whole + "\n") == ids


def test_what_is_scored_beside_it_changes_nothing(folder: Path) -> None:
    whole, narrow = open_model(folder), open_model(folder, batch_tokens=8)
    texts = [whole.of_answer(ASKED, answer) for answer in ANSWERS * 3]
    assert whole.score(texts) == pytest.approx(narrow.score(texts), rel=1e-4, abs=1e-5)
    assert whole.score([]) == []


def test_of_a_text_too_long_the_end_counts(folder: Path) -> None:
    short, long = open_model(folder, max_tokens=8), open_model(folder)
    ids = short.of_text("a cat and a dog and a bird and a mouse")
    assert ids == long.of_text("a cat and a dog and a bird and a mouse")[-8:]
    assert short.score([short.of_text("")]) != []


def test_an_adapter_is_loaded_on_its_base(saved: Path, tokenizer: Any, tmp_path: Path) -> None:
    settings = LoraSettings(r=4, alpha=8, target_modules=("q_proj", "v_proj"))
    model = open_model(trained(saved, tokenizer, tmp_path / "adapter", lora=settings))
    first, second = model.score([model.of_text("the cat"), model.of_text("the dog")])
    assert first != second


def test_an_encoder_scores_pairs(tokenizer: Any, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    ids = [model.of_answer(ASKED, "the cat"), model.of_text("a dog and a bird and a cat")]

    with torch.no_grad():
        expected = [float(theirs(torch.tensor([one])).logits) for one in ids]

    assert model.score(ids) == pytest.approx(expected, rel=1e-4)


def test_a_classifier_with_several_outputs_is_none(saved: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gives 3 numbers"):
        open_model(trained(saved, tokenizer, tmp_path / "three", outputs=3))


def test_requests_that_come_together_are_scored_together(folder: Path) -> None:
    class Slow(RewardModel):
        def score(self, texts: Any) -> list[float]:
            entered.set()
            assert go.wait(60)
            return super().score(texts)

    entered, go = threading.Event(), threading.Event()
    model = Slow(Source(str(folder)), max_tokens=512, batch_tokens=10_000)
    together = Together(model)
    answers: dict[int, list[float]] = {}

    def ask(number: int) -> None:
        request = {"prompt": ASKED, "completions": ANSWERS[: 1 + number % 3]}
        answers[number] = score(model, together, request)["scores"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    threads[0].start()
    assert entered.wait(60)
    for thread in threads[1:]:
        thread.start()
    while together._asked.qsize() < 5:
        threading.Event().wait(0.01)
    go.set()
    for thread in threads:
        thread.join(60)

    assert together.batches == 2, "the first alone, and all others at once"
    alone = RewardModel.score(model, [model.of_answer(ASKED, answer) for answer in ANSWERS])
    for number, found in answers.items():
        assert found == pytest.approx(alone[: 1 + number % 3], rel=1e-4, abs=1e-5)


def test_a_request_that_breaks_the_model_breaks_nobody_elses(folder: Path) -> None:
    model = open_model(folder)
    together = Together(model)
    with pytest.raises(IndexError):
        together.score([[10**6, 1]])
    assert len(together.score([model.of_text("the cat")])) == 1


@pytest.mark.parametrize(
    "request_",
    [{}, [], {"texts": [1]}, {"completions": ["a"]}, {"completions": ["a"], "prompt": [{"role": "user"}]}],
)
def test_requests_that_are_wrong(folder: Path, request_: Any) -> None:
    model = open_model(folder)
    with pytest.raises(Rejected):
        score(model, Together(model), request_)
