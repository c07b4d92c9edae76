"""Critics: zero at first, trained with their head, and the same numbers after saving and loading."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from engine.errors import ModelError
from engine.lm.heads import load_head, new_head
from engine.lm.learner import Learner, LearnerSettings, LossOutput
from engine.lm.packing import pack
from engine.lm.policy import LoraSettings, load_policy

PACKED = pack([[1, 2, 3], [1, 2, 4]], [[[5, 6], [7]], [[8, 9, 9]]], want=("last", "before"))
LORA = LoraSettings(r=2, alpha=4, target_modules=("q_proj", "v_proj"))


def trained(saved, **options):
    head = new_head(saved, load_policy(saved).tokenizer, **options)
    learner = Learner(head, LearnerSettings(lr=0.02))
    for _ in range(3):
        learner.step(lambda packed: LossOutput((head(packed) - 1).pow(2).sum(), 6.0), [PACKED])
    return head


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("outputs", [1, 4])
def test_a_new_head_says_zero_everywhere(saved, lora, outputs):
    values = new_head(saved, load_policy(saved).tokenizer, outputs=outputs, lora=lora)(PACKED)

    assert values.shape == ((len(PACKED.nodes),) if outputs == 1 else (len(PACKED.nodes), outputs))
    assert not values.any()


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("outputs", [1, 4])
def test_a_trained_head_comes_back_equal_and_still_trainable(saved, tmp_path, lora, outputs):
    head = trained(saved, outputs=outputs, lora=lora)
    head.save(tmp_path / "critic")

    again = load_head(tmp_path / "critic", head.tokenizer)

    with torch.no_grad():
        assert head(PACKED).abs().min() > 1e-3  # the head itself was trained, not left at zero
        assert torch.equal(again(PACKED), head(PACKED))
    names = {name.split(".")[-2] for name, p in again.named_parameters() if p.requires_grad}
    assert names == {name.split(".")[-2] for name, p in head.named_parameters() if p.requires_grad}


def test_on_disk_it_is_a_sequence_classifier(saved, tmp_path):
    head = trained(saved)
    head.save(tmp_path / "critic")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic").eval()

    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([[1, 2, 3, 5, 6]]), attention_mask=torch.ones(1, 5)).logits[0, 0]
        ours = head(PACKED)[PACKED.last[0]]

    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_with_adapters_only_they_and_the_head_train(saved):
    head = new_head(saved, load_policy(saved).tokenizer, lora=LORA)

    kinds = {"lora" if "lora" in name else "score" for name, p in head.named_parameters() if p.requires_grad}

    assert kinds == {"lora", "score"}
    assert sum(p.numel() for p in head.trainable()) == 2 * 2 * (2 * 32 * 2) + 32


def test_an_adapter_without_a_head_is_refused(saved, tmp_path):
    policy = load_policy(saved, lora=LORA)
    policy.save(tmp_path / "adapter")

    with pytest.raises(ModelError, match="carries no head"):
        load_head(tmp_path / "adapter", policy.tokenizer)
