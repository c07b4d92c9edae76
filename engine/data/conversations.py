"""Written conversations in a row: a list of messages, in the words of OpenAI (`role`, `content`) or of ShareGPT."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from engine.errors import DataError
from engine.spec.dataset import Message

Role = Literal["system", "user", "assistant"]
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
_WORDS = (("role", "content"), ("from", "value"))


def messages(said: Any, place: str) -> tuple[Message, ...]:
    """The messages of a row's column. `place` names both in the DataError that is raised where they are none."""
    if not isinstance(said, list) or not said:
        raise DataError(f"{place} is not a list of messages")
    return tuple(_message(message, f"{place}, message {number}") for number, message in enumerate(said, 1))


def _message(message: Any, place: str) -> Message:
    words = next((words for words in _WORDS if isinstance(message, Mapping) and set(words) <= set(message)), None)
    if words is None:
        raise DataError(f"{place} needs a `role` and a `content` (or `from` and `value`)")
    who, what = (message[word] for word in words)
    if who not in _ROLES:
        close = get_close_matches(str(who), _ROLES, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_ROLES)}"
        raise DataError(f"{place} is said by {who!r:.40}; {hint}")
    if not isinstance(what, str):
        raise DataError(f"{place}: its {words[1]} is {what!r:.60}, not text")
    return Message(role=_ROLES[who], content=what)
