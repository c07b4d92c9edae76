"""Policies: what is saved comes back, for us and for `transformers`; chat text; errors that say what to do."""

from __future__ import annotations

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import ModelError
from engine.lm.chat import PLAIN_TEMPLATE
from engine.lm.learner import Learner, LearnerSettings, LossOutput
from engine.lm.policy import LoraSettings, load_policy

IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def train_a_little(policy):
    policy.model.train()
    learner = Learner(policy.model, LearnerSettings(lr=0.05))
    for _ in range(2):
        learner.step(lambda ids: LossOutput(policy.model(input_ids=ids).logits.pow(2).sum(), 4.0), [IDS])
    policy.model.eval()


def test_a_saved_policy_loads_with_from_pretrained_and_generates(make_policy, tmp_path):
    policy = make_policy()
    policy.save(tmp_path)

    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    out = model.generate(**tokenizer("You are", return_tensors="pt"), max_new_tokens=3, do_sample=False)

    assert torch.equal(logits(model), logits(policy.model))
    assert out.shape[1] > 3
    assert tokenizer.chat_template == policy.tokenizer.chat_template


def test_a_trained_policy_comes_back_equal(saved, tmp_path):
    policy = load_policy(saved)
    train_a_little(policy)
    policy.save(tmp_path / "again")

    assert torch.equal(logits(load_policy(tmp_path / "again").model), logits(policy.model))


def test_adapters_train_alone_and_are_saved_as_a_peft_directory(saved, tmp_path):
    policy = load_policy(saved, lora=LoraSettings(r=2, alpha=4, target_modules=("q_proj", "v_proj")))
    base = logits(policy.model)
    assert torch.equal(base, logits(load_policy(saved).model))  # a fresh adapter changes nothing
    train_a_little(policy)
    policy.save(tmp_path / "adapter")

    again = load_policy(tmp_path / "adapter")
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()

    assert sum(p.numel() for p in policy.parameters()) == 2 * 2 * (2 * 32 * 2)  # layers · modules · (A and B)
    assert not torch.equal(logits(policy.model), base)
    assert torch.equal(logits(again.model), logits(policy.model))
    assert torch.equal(logits(theirs), logits(policy.model))
    assert len(again.parameters()) == len(policy.parameters())
    with policy.model.disable_adapter():
        assert_close(logits(policy.model), base)


def test_the_opening_of_a_chat_ends_where_the_assistant_speaks(make_policy):
    policy = make_policy()

    text = policy.chat_text("Be brief.", "Hi\nthere")

    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi\nthere<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert policy.decode(policy.chat_ids("Be brief.", "Hi\nthere")) == text
    assert "system" not in policy.chat_text("", "Hi")


def test_a_reply_closes_the_turn_and_opens_the_next(make_policy):
    policy = make_policy()

    assert policy.decode(policy.reply_ids("yes")) == (
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nyes<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_all_replies_begin_with_the_same_tokens(make_policy):
    policy = make_policy()
    opening = policy.reply_opening()

    assert policy.decode(opening) == "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    for reply in ("Yes.", "no", "12"):
        assert policy.reply_ids(reply)[: len(opening)] == opening


def test_a_tokenizer_without_a_template_or_header_tokens_gets_a_plain_one(saved):
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(saved)
    (saved / "chat_template.jinja").unlink(missing_ok=True)

    assert "<|start_header_id|>" in load_policy(saved).chat_text("s", "u")
    from engine.lm import chat
    from tests.lm.families import word_tokenizer

    words = word_tokenizer()
    chat.ensure_template(words)
    assert words.chat_template == PLAIN_TEMPLATE
    assert chat.opening_text(words, "s", "u") == "system:\ns\n\nuser:\nu\n\nassistant:\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "needs config.json"),
        (lambda folder: folder / "absent", r"Is the id right.*scratch:<preset> needs no network"),
    ],
)
def test_what_holds_no_model_is_refused_with_advice(tmp_path, monkeypatch, make, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    with pytest.raises(ModelError, match=message):
        load_policy(make(tmp_path))


def test_an_adapter_without_its_base_says_so(saved, tmp_path):
    policy = load_policy(saved, lora=LoraSettings(target_modules=("q_proj",)))
    policy.save(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(f'"{saved}"', "null"))

    with pytest.raises(ModelError, match="does not say which model it belongs to"):
        load_policy(tmp_path / "adapter")


def test_lora_that_does_not_fit_the_architecture_is_refused(saved):
    with pytest.raises(ModelError, match=r"model\.lora does not fit LlamaForCausalLM"):
        load_policy(saved, lora=LoraSettings(target_modules=("no_such_layer",)))
