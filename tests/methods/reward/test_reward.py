"""Reward models: the loss by hand, prompts read once, what is learnt, where it resumes, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from engine.errors import DataError, SpecError
from engine.lm.heads import ScalarHead, new_head
from engine.lm.policy import Policy
from engine.methods import registry
from engine.methods.maths.preferences import bradley_terry
from engine.methods.reward import stages
from engine.methods.reward.config import Reward
from engine.methods.reward.pairs import Pair, all_rewards, in_tokens, quick_order, rewards, written
from engine.methods.reward.stages import pair_loss
from engine.spec.load import load
from tests.methods.conftest import Stage, weights, whole_and_in_parts

ITEMS = [
    {"prompt": "Say a word.", "chosen": "word", "rejected": "sentence", "margin": 1.5},
    {"prompt": "Say a word.", "chosen": "one", "rejected": "no"},
    {"prompt": "Say more.", "chosen": "more more", "rejected": "less"},
]
DATASET = {"main_prompt": "", "system_prompt": "", "items": ITEMS, "splits": {"heldout": ITEMS[:2]}}
SMALL = {"steps": 6, "batch_size": 2, "lr": 3e-3, "checkpoint_every": 1, "warmup": 0.2}


def algorithm(**changes: Any) -> dict[str, Any]:
    return Reward.model_validate(SMALL | changes).model_dump(mode="json")


@pytest.fixture
def head(model_dir: Path, policy: Policy) -> ScalarHead:
    found = new_head(str(model_dir), policy.tokenizer)
    torch.manual_seed(1)
    with torch.no_grad():
        found.model.score.weight.normal_()  # type: ignore[union-attr,operator]
    return found


@pytest.fixture
def pairs(head: ScalarHead) -> list[Pair]:
    found = in_tokens(head.tokenizer, written(DATASET)["train"], longest=1000, margins=True)
    return [pair for pair in found if pair is not None]


def test_the_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])

    loss = bradley_terry(chosen, rejected, torch.tensor([0.0, 1.0]))

    # −log σ(1) and −log σ(−1)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-1.0)), math.log1p(math.exp(1.0))])


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(-3, 3))
def test_only_the_difference_of_rewards_counts(chosen: float, rejected: float, shift: float) -> None:
    one = bradley_terry(torch.tensor([chosen]), torch.tensor([rejected]))
    other = bradley_terry(torch.tensor([chosen + shift]), torch.tensor([rejected + shift]))
    assert one.item() == pytest.approx(other.item(), abs=1e-4)


def test_a_reward_is_the_models_own_at_the_end_of_the_answers_turn(head: ScalarHead, pairs: list[Pair]) -> None:
    chosen, rejected = rewards(head, pairs)
    for pair, better, worse in zip(pairs, chosen, rejected, strict=True):
        for answer, value in ((pair.chosen, better), (pair.rejected, worse)):
            assert answer[-1] == head.tokenizer.eos_token_id
            with torch.no_grad():
                said = head.model(input_ids=torch.tensor([[*pair.prompt, *answer]])).logits
            assert value.item() == pytest.approx(said.item(), abs=1e-4)


@pytest.mark.parametrize("most", [1, 80, 10_000])
def test_how_pairs_are_cut_into_parts_changes_nothing(head: ScalarHead, pairs: list[Pair], most: int) -> None:
    assert sorted(quick_order(pairs)) == [0, 1, 2]
    chosen, rejected = rewards(head, pairs)
    assert all_rewards(head, pairs, most) == [
        (pytest.approx(better, abs=1e-5), pytest.approx(worse, abs=1e-5))
        for better, worse in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]


def test_margins_and_centring_are_in_the_loss(head: ScalarHead, pairs: list[Pair]) -> None:
    chosen, rejected = rewards(head, pairs)
    margins = torch.tensor([1.5, 0.0, 0.0])
    plain = -torch.nn.functional.logsigmoid(chosen - rejected - margins).sum()
    centred = plain + 0.1 * ((chosen + rejected) ** 2).sum()
    assert pair_loss(head, pairs).loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert pair_loss(head, pairs, centre=0.1).loss.item() == pytest.approx(centred.item(), rel=1e-5)
    without = in_tokens(head.tokenizer, written(DATASET)["train"], longest=1000, margins=False)
    assert [pair.margin for pair in without if pair] == [0.0, 0.0, 0.0]


def test_a_preference_whose_difference_is_cut_off_is_left_out(head: ScalarHead, pairs: list[Pair]) -> None:
    found = in_tokens(head.tokenizer, written(DATASET)["train"], longest=len(pairs[0].prompt), margins=True)
    assert found[:2] == [None, None]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(stage: Stage) -> None:
    whole, last = whole_and_in_parts(stage, stages.train, algorithm(), dataset=DATASET)

    assert weights(last.output_dir) == weights(whole.output_dir)
    saved = AutoModelForSequenceClassification.from_pretrained(last.output_dir / "best" / "reward")
    assert saved.config.num_labels == 1


def test_it_learns_what_was_preferred(stage: Stage) -> None:
    trained = stage(algorithm(steps=30), name="train", dataset=DATASET)
    stages.train(trained)
    ctx = stage(algorithm(steps=30), name="evaluate", dataset=DATASET, train=trained.output_dir)
    stages.evaluate(ctx)
    assert dict(trained.curve("accuracy"))[0] == 0.5  # a new head says 0 to everything
    table = json.loads((ctx.output_dir / "accuracies.json").read_text())
    assert table["final/accuracy"] == {"train": 1.0, "heldout": 1.0}
    assert table["final/gap"]["train"] > 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "rows.jsonl:1: what was rejected is 3, not text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, "the margin is -1, not a number of at least 0"),
        ({"prompt": "a", "answer": "b"}, "train:1: a reward model learns from `chosen` and `rejected` answers"),
    ],
)
def test_a_row_that_cannot_be_learnt_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as refused:
        written({"main_prompt": "", "system_prompt": "", "items": {"file": str(file)}, "splits": {}})
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("{prompt: x, chosen: y}", "a preference needs both `chosen` and `rejected`"),
        ("{prompt: x, margin: 1}", "a margin is between `chosen` and `rejected`"),
        ("{prompt: x, answer: y}", "reward learns from preferences"),
    ],
)
def test_a_spec_without_preferences_is_refused(tmp_path: Path, item: str, said: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"version: 1\nname: a\ndataset: {{items: [{item}]}}\nalgorithm: reward\nmodel: 'scratch:llama-nano'\n"
    )
    with pytest.raises(SpecError) as refused:
        load(path, methods=registry.configs())
    assert "spec.yaml:3:" in str(refused.value)
    assert said in str(refused.value)
