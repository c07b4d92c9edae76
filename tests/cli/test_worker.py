"""Which GPUs a worker lends."""

from __future__ import annotations

import pytest
import typer

from engine.cli.worker import parse_gpus


@pytest.mark.parametrize(
    ("text", "gpus"), [("0-3,6", [0, 1, 2, 3, 6]), ("2", [2]), ("1,1,0", [0, 1]), ("none", []), ("3-3", [3])]
)
def test_ranges(text, gpus):
    assert parse_gpus(text) == gpus


@pytest.mark.parametrize("text", ["", "a", "3-1", "0-", "-1", "0,,1"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(typer.BadParameter):
        parse_gpus(text)
