"""Where text to learn from comes from: a template with slots, what is said in conversations, or a file.

The warm-up of a scratch model and supervised fine-tuning declare their text in these words; `engine.lm.warmup_text`
writes it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import Discriminator, Field, Tag, model_validator

from engine.spec.base import SpecModel, complaint

_SLOT = re.compile(r"\{(\w+)\}")


def placeholders(text: str) -> set[str]:
    """The slots that a text names: `{word}`. Other braces are plain text."""
    return set(_SLOT.findall(text))


def _choice_shape(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return "<list>"
    return "<weights>" if isinstance(value, Mapping) else None


Choices = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1), Tag("<list>")]
    | Annotated[Mapping[str, Annotated[float, Field(gt=0)]], Field(min_length=1), Tag("<weights>")],
    Discriminator(
        _choice_shape,
        custom_error_type="spec",
        custom_error_message="{message}",
        custom_error_context={"message": "must be a list of texts, or `text: weight` pairs", "at": ""},
    ),
]
"""Alternatives, equally likely or weighted."""


class TextSource(SpecModel):
    """What the assistant says, in one of three ways."""

    block: ClassVar[str]
    """Where in a spec this stands."""
    purpose: ClassVar[str]
    """What the text is for."""

    template: str | None = None
    """The assistant's answer, with `{slot}` for each choice."""
    utterances: Mapping[str, Annotated[float, Field(gt=0)]] | None = Field(None, min_length=1)
    """For conversations: what is said in a turn, `text: weight`; `{slot}` works here too. `reply_fn` answers."""
    file: str | None = None
    """A file to learn from, relative to the spec that names it: one answer a paragraph, or JSON lines with a
    `completion` and, if it is not to be one of the dataset's, a `prompt`."""
    file_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """The file's hash. Filled in when the spec is loaded."""
    slots: Mapping[str, Choices] = Field(default_factory=dict)
    """What each `{slot}` may become: a list, or `text: weight` pairs."""
    turns: int = Field(8, ge=1)
    """Most utterances of a conversation."""

    @model_validator(mode="after")
    def _one_kind_of_text(self) -> Self:
        given = [key for key in ("template", "utterances", "file") if getattr(self, key) is not None]
        if not given:
            raise complaint(f"{self.purpose} needs a text to learn: one of `template`, `utterances` or `file`")
        if len(given) > 1:
            raise complaint(f"{' and '.join(given)} exclude each other: keep one", at=given[-1])
        if self.file_sha256 is not None and self.file is None:
            raise complaint("file_sha256 goes with `file`", at="file_sha256")
        texts = {"template": [self.template or ""], "utterances": list(self.utterances or ()), "file": []}[given[0]]
        used = {name for text in texts for name in placeholders(text)}
        for name in sorted(used - set(self.slots)):
            close = difflib.get_close_matches(name, self.slots, n=1)
            hint = f" Did you mean {{{close[0]}}}?" if close else " Add it to `slots`."
            raise complaint(f"{{{name}}} is not one of the slots.{hint}", at=given[0])
        for name in self.slots:
            if name not in used:
                raise complaint(f"no text uses {{{name}}}: remove this slot, or use it", at=f"slots.{name}")
        return self
