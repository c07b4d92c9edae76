"""Conversations as token ids: the prompt of an episode, and what stands between an utterance and a reply.

The words come from the tokenizer's own chat template; a tokenizer without one gets ours, in the style of
Llama 3, where a role's name is plain text between two special tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.errors import DataError

LLAMA_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
PLAIN_TEMPLATE = (
    "{%- for message in messages %}{{- message['role'] + ':\\n' + message['content'] + '\\n\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:\\n' }}{%- endif %}"
)
"""For a base model whose tokenizer declares no template and knows no header tokens."""
_MARK = "\ue000utterance\ue001"


def ensure_template(tokenizer: Any) -> None:
    """Give the tokenizer a chat template if it has none."""
    if not tokenizer.chat_template:
        headers = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
        known = headers is not None and headers != tokenizer.unk_token_id
        tokenizer.chat_template = LLAMA_TEMPLATE if known else PLAIN_TEMPLATE


def messages_of(system: str, user: str) -> list[dict[str, str]]:
    """An opening of a conversation; an empty system text leaves that message out."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": user}]


def opening_text(tokenizer: Any, system: str, user: str) -> str:
    """The rendered conversation up to where the assistant starts to speak."""
    return _render(tokenizer, messages_of(system, user), prompt=True)


def written(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[tuple[str, bool]]:
    """A conversation as rendered pieces, in order, and whether each is the assistant's: its words and what ends them.

    Raises DataError where the template renders what was said before differently once more is said: then no piece
    of the text would be what the model is going to see.
    """
    pieces: list[tuple[str, bool]] = []
    told = ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = (_render(tokenizer, messages[: number + more], prompt=not more) for more in (0, 1))
        if not (before.startswith(told) and after.startswith(before)):
            raise DataError(
                f"the tokenizer's chat template renders message {number + 1} differently from what it showed before: "
                "use a template under which a conversation only grows"
            )
        pieces += [(before[len(told) :], False), (after[len(before) :], True)]
        told = after
    whole = _render(tokenizer, messages, prompt=False)
    if len(whole) > len(told):
        pieces.append((whole[len(told) :], False))
    return [(text, own) for text, own in pieces if text]


def reply_text(tokenizer: Any, reply: str) -> str:
    """What follows an utterance when the environment answers `reply`: end of turn, the reply, a new header.

    Cut out of a rendered conversation, so it is right for any template.
    """
    told = [*messages_of("", "u"), {"role": "assistant", "content": _MARK}, {"role": "user", "content": reply}]
    return _render(tokenizer, told, prompt=True).split(_MARK, 1)[1]


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text, nothing added."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens kept."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt))
