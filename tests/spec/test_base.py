"""Units, and the strictness that every block of a spec inherits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from engine.spec.base import Duration, Size, SpecModel
from engine.spec.help import field_help

DURATION, SIZE = TypeAdapter(Duration), TypeAdapter(Size)


class Block(SpecModel):
    """A block."""

    count: int = 1
    rate: float = 1.0
    flag: bool = False
    word: str = ""
    words: tuple[str, ...] = ()
    """Some words."""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45s", 45),
        ("30m", 1800),
        ("2h", 7200),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("1h1m1s", 3661),
        (90, 90),
        (0.5, 0.5),
    ],
)
def test_durations(text: Any, seconds: float) -> None:
    assert DURATION.validate_python(text) == seconds


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_a_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: int) -> None:
    assert DURATION.validate_python(f"{hours}h{minutes}m{seconds}s") == hours * 3600 + minutes * 60 + seconds


@pytest.mark.parametrize("text", ["", "2 hours", "h", "-5m", "1h 30m", "5M", True, None, 0, -1, "0s", [1]])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GiB", 20 * 1024**3),
        ("512MiB", 512 * 1024**2),
        ("1.5GB", 1_500_000_000),
        ("10 KB", 10_000),
        ("7B", 7),
        ("1TiB", 1024**4),
        ("2PB", 2 * 10**15),
        (4096, 4096),
    ],
)
def test_sizes(text: Any, size: int) -> None:
    assert SIZE.validate_python(text) == size


@pytest.mark.parametrize("text", ["20G", "GiB", "1gib", -1, True, 1.5, None])
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(ValidationError):
        SIZE.validate_python(text)


@pytest.mark.parametrize(
    "data",
    [
        '{"count": "1"}',
        '{"count": 1.5}',
        '{"count": true}',
        '{"rate": "1"}',
        '{"rate": true}',
        '{"flag": 1}',
        '{"flag": "true"}',
        '{"word": 1}',
        '{"word": null}',
        '{"words": "one"}',
        '{"other": 1}',
    ],
)
def test_nothing_is_converted_and_nothing_is_ignored(data: str) -> None:
    with pytest.raises(ValidationError):
        Block.model_validate_json(data)


def test_an_integer_is_a_number_and_a_list_a_tuple() -> None:
    block = Block.model_validate_json('{"rate": 2, "words": ["a"]}')

    assert (block.rate, block.words) == (2.0, ("a",))


def test_blocks_are_frozen_and_explain_themselves() -> None:
    with pytest.raises(ValidationError):
        Block().count = 2  # type: ignore[misc]  # what is tested

    assert field_help(Block) == {"words": "Some words."}
