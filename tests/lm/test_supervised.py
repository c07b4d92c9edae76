"""Learning texts by imitation: which tokens are learnt, and what the loss of them is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from engine.errors import DataError
from engine.lm import chat
from engine.lm.shares import cut
from engine.lm.supervised import Example, completion_loss, mean_logps, of_conversation, quick_order


def test_only_the_models_own_tokens_are_learnt(make_policy: Any) -> None:
    policy = make_policy()
    one = Example(prompt=[1, 2], rest=[5, 6, 7, 8], own=[True, False, False, True])

    out = completion_loss(policy, [one])

    with torch.no_grad():
        logps = torch.log_softmax(policy.model(input_ids=torch.tensor([[1, 2, 5, 6, 7, 8]])).logits[0], -1)
    assert out.weight == 2.0
    assert out.loss.item() == pytest.approx(-float(logps[1, 5] + logps[4, 8]), abs=1e-4)


LLAMA3 = chat.LLAMA_TEMPLATE
CHATML = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|eot_id|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
FORGETFUL = (
    "{%- for m in messages %}{{- m['role'] + ':' + (m['content'] if loop.last else '...') }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2."},
]


def learnt(tokenizer: Any, one: Example) -> list[str]:
    """The stretches of text that are learnt."""
    stretches: list[list[int]] = [[]]
    for token, mine in zip(one.rest, one.own, strict=True):
        if mine:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    return [chat.decode(tokenizer, ids) for ids in stretches if ids]


def templated(tokenizer: Any, template: str) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize("template", [LLAMA3, CHATML], ids=["llama 3", "chatml"])
def test_the_assistants_words_and_the_ends_of_its_turns_are_learnt(tokenizer: Any, template: str) -> None:
    tokenizer = templated(tokenizer, template)

    one = of_conversation(tokenizer, TALK)

    assert one is not None
    assert learnt(tokenizer, one) == ["1.<|eot_id|>", "2.<|eot_id|>"]  # not the line's end after it
    whole = chat.decode(tokenizer, [*one.prompt, *one.rest])
    assert whole == tokenizer.apply_chat_template(TALK, tokenize=False)
    assert chat.decode(tokenizer, one.prompt) == tokenizer.apply_chat_template(
        TALK[:2], tokenize=False, add_generation_prompt=True
    )


def test_where_a_template_ends_no_turn_the_sequence_ends(tokenizer: Any) -> None:
    one = of_conversation(templated(tokenizer, chat.PLAIN_TEMPLATE), TALK)
    assert one is not None
    assert one.rest[-1] == tokenizer.eos_token_id
    assert one.own[-1]
    assert len(one.rest) == len(one.own)


def test_everything_is_all_but_the_first_token(tokenizer: Any) -> None:
    one = of_conversation(tokenizer, TALK, everything=True)
    assert one is not None
    assert len(one.prompt) == 1
    assert all(one.own)
    assert chat.decode(tokenizer, [*one.prompt, *one.rest]) == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_what_is_too_long_is_cut_off(tokenizer: Any) -> None:
    whole = of_conversation(tokenizer, TALK)
    assert whole is not None
    cut = of_conversation(tokenizer, TALK, longest=len(whole.prompt) + 2)
    assert cut is not None
    assert (cut.prompt, cut.rest) == (whole.prompt, whole.rest[:2])
    assert of_conversation(tokenizer, TALK, longest=len(whole.prompt)) is None


def test_a_conversation_that_cannot_be_learnt_says_why(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        of_conversation(tokenizer, TALK[:2])
    with pytest.raises(DataError, match=r"renders message [35] differently"):
        of_conversation(templated(tokenizer, FORGETFUL), TALK)


def conversations(policy: Any) -> list[Example]:
    asked = ["One?", "Two?", "A much longer question than the others, is it not?", "One?"]
    said = ["1.", "2. And nothing more.", "Yes.", "I said 1."]
    return [
        one
        for question, answer in zip(asked, said, strict=True)
        if (
            one := of_conversation(
                policy.tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            )
        )
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("most", [1, 60, 10_000])
def test_how_examples_are_cut_into_parts_changes_nothing(make_policy: Any, family: str, most: int) -> None:
    policy = make_policy(family)
    examples = conversations(policy)

    parts = list(cut(quick_order(policy, examples), [example.length for example in examples], most))

    assert sorted(index for part in parts for index in part) == list(range(len(examples)))
    total = sum(completion_loss(policy, [examples[i] for i in part]).loss.item() for part in parts)
    assert total == pytest.approx(sum(expected(policy, one).sum().item() * -1 for one in examples), rel=1e-5)
    means = mean_logps(policy, examples, most)
    assert means == pytest.approx([expected(policy, one).mean().item() for one in examples], rel=1e-5)


def expected(policy: Any, one: Example) -> torch.Tensor:
    """Log-probs of the learnt tokens, by the model's own forward over the whole sequence."""
    ids = torch.tensor([[*one.prompt, *one.rest]])
    with torch.no_grad():
        logps = torch.log_softmax(policy.model(input_ids=ids).logits[0].float(), -1)
    first = len(one.prompt) - 1
    return torch.stack(
        [logps[first + n, token] for n, (token, mine) in enumerate(zip(one.rest, one.own, strict=True)) if mine]
    )
