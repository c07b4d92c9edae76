"""The dataset block: recurve's format (prompts, gold answers, three functions), and where larger data comes from.

Only described here. Files and hub datasets are read by `engine.data`, functions are checked by `signatures`
and run by `engine.functions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, field_validator, model_validator

from engine.spec.base import SpecModel, complaint

Format = Literal["yaml", "json", "jsonl", "csv", "parquet"]
SUFFIXES: Mapping[str, Format] = {
    ".yaml": "yaml",
    ".yml": "yaml",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
TRAIN = "train"
"""The split that `items` is."""


class Message(SpecModel):
    """One message of a written conversation."""

    role: Literal["system", "user", "assistant"]
    """Who speaks."""
    content: str
    """What is said."""


class Item(SpecModel):
    """One task: what the model is asked, and what the score function compares with; or a written conversation."""

    prompt: str = ""
    """What the model is given; `main_prompt` goes before it."""
    answer: JsonValue = None
    """The gold answer: any JSON value, handed to `score_fn` untouched."""
    messages: tuple[Message, ...] | None = Field(None, min_length=1)
    """A whole conversation in place of `prompt`, for methods that learn from written ones, such as `sft`."""
    chosen: str | None = None
    """The better of two answers, for methods that learn from preferences, such as `reward`."""
    rejected: str | None = None
    """The worse one."""
    margin: float | None = Field(None, ge=0)
    """By how much the chosen answer is better; empty: not known."""
    columns: Mapping[str, JsonValue] = Field(default_factory=dict)
    """Anything else that belongs to the item."""

    @model_validator(mode="after")
    def _prompt_or_messages(self) -> Item:
        if self.messages is None and "prompt" not in self.model_fields_set:
            raise complaint("an item needs a `prompt`, or `messages`")
        if self.messages is not None and (self.prompt or self.answer is not None):
            raise complaint("`messages` hold the whole conversation: leave out prompt and answer", at="messages")
        if (self.chosen is None) != (self.rejected is None):
            raise complaint("a preference needs both `chosen` and `rejected`")
        if self.margin is not None and self.chosen is None:
            raise complaint("a margin is between `chosen` and `rejected`", at="margin")
        return self


class ItemsSource(SpecModel):
    """Items that stand in a file or in a dataset of the Hugging Face hub."""

    file: str | None = None
    """A file, relative to the spec that names it."""
    hub: str | None = Field(None, pattern=r"^[\w.-]+(/[\w.-]+)?$")
    """A dataset's id on the hub."""
    format: Format | None = None
    """What the file is; empty: told by its ending."""
    columns: Mapping[str, str] = Field(default_factory=dict)
    """Which column is which, such as `{prompt: question, answer: gold}`."""
    split: str | None = None
    """The hub dataset's split."""
    subset: str | None = None
    """The hub dataset's configuration, where it has several."""
    revision: str | None = None
    """The hub dataset's branch, tag or commit."""
    limit: int | None = Field(None, ge=1)
    """Read no more items than this; empty: all."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """The file's hash. Filled in when the spec is loaded, so that a run says which data it saw."""

    @model_validator(mode="after")
    def _one_source(self) -> ItemsSource:
        if (self.file is None) == (self.hub is None):
            raise complaint("items need either `file` or `hub`, and not both")
        if self.hub is not None:
            for key in ("format", "sha256"):
                if getattr(self, key) is not None:
                    raise complaint(f"{key} is for a file, not for a hub dataset", at=key)
            if self.split is None:
                raise complaint("a hub dataset needs the name of its split, such as `split: train`")
            return self
        for key in ("split", "subset", "revision"):
            if getattr(self, key) is not None:
                raise complaint(f"{key} is for a hub dataset, not for a file", at=key)
        if self.format is None and PurePath(self.file or "").suffix.lower() not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise complaint(f"{self.file!r} does not end in one of {known}: say its `format`", at="file")
        return self


def _shape(value: Any) -> str | None:
    if isinstance(value, list | tuple):
        return INLINE
    if isinstance(value, ItemsSource):
        return SOURCE
    if isinstance(value, Mapping):
        lone_item = ("prompt" in value or "messages" in value) and "file" not in value and "hub" not in value
        return None if lone_item else SOURCE
    return None


INLINE, SOURCE = "<list>", "<source>"
Items = Annotated[
    Annotated[tuple[Item, ...], Field(min_length=1), Tag(INLINE)] | Annotated[ItemsSource, Tag(SOURCE)],
    Discriminator(
        _shape,
        custom_error_type="spec",
        custom_error_message="{message}",
        custom_error_context={
            "message": "must be a list of items (`- prompt: …`), or a block with `file` or `hub`",
            "at": "",
        },
    ),
]
"""Items written out, or where they are."""


class Dataset(SpecModel):
    """What a model is asked, and the functions that say how well it did. As in recurve, and a little more."""

    main_prompt: str = ""
    """Goes before the prompt of every item."""
    system_prompt: str = "You are a helpful assistant."
    """The system message of every conversation."""
    items: Items
    """The training items: a list, or `{file: …}`, or `{hub: …, split: …}`."""
    splits: Mapping[str, Items] = Field(default_factory=dict)
    """More items by name, such as `heldout`, which are evaluated on and never trained on."""
    score_fn: str | None = None
    """Python source of `score_fn(text, answer)`: the score of a finished conversation."""
    score_by: str | None = None
    """In place of a `score_fn`: the name of a service that scores (`reward`, or a `command` with `POST /score`)."""
    done_fn: str | None = None
    """Python source of `done_fn(text)`: whether the conversation is over; asked after every token."""
    split_fn: str | None = None
    """Python source of `split_fn(output)`: whether the utterance is over; asked after every token."""
    reply_fn: str | None = None
    """Python source of `reply_fn(text, answer)`: what the environment says after an utterance."""

    turn_cost: float = Field(0.0, ge=0)
    """What every utterance costs. A score is what `score_fn` says, less the cost of all that was said."""

    @field_validator("splits")
    @classmethod
    def _train_is_taken(cls, splits: Mapping[str, Any]) -> Mapping[str, Any]:
        if TRAIN in splits:
            raise complaint(f"the split {TRAIN!r} is what `items` holds: give this one another name", at=TRAIN)
        return splits

    @model_validator(mode="after")
    def _one_score(self) -> Dataset:
        if self.score_fn is not None and self.score_by is not None:
            raise complaint("score_fn and score_by exclude each other: keep one", at="score_by")
        return self

    @property
    def scores(self) -> bool:
        """Whether a conversation gets a score at all."""
        return self.score_fn is not None or self.score_by is not None

    @property
    def split_names(self) -> tuple[str, ...]:
        """`train`, and the names under `splits`."""
        return (TRAIN, *self.splits)

    def inline_items(self) -> Iterator[tuple[str, Item]]:
        """Every item that is written out, with its place in the spec."""
        places = {
            "dataset.items": self.items,
            **{f"dataset.splits.{name}": found for name, found in self.splits.items()},
        }
        for place, items in places.items():
            if isinstance(items, tuple):
                yield from ((f"{place}.{number}", item) for number, item in enumerate(items))
