"""Names of secrets are kept, their values never; what is no name is refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import SpecError
from engine.spec.secrets import check_secrets, resolve_secrets
from engine.spec.tree import from_plain


def complaints(data: Any) -> list[str]:
    return [problem.message for problem in check_secrets(from_plain(data))]


@pytest.mark.parametrize("text", ["${env:HF_TOKEN}", "Bearer ${env:A}-${env:_b2}", "costs $5 {x}", "a_b-c"])
def test_references_are_accepted(text: str) -> None:
    assert complaints({"notes": text, "tags": [text]}) == []


@pytest.mark.parametrize(
    "text", ["${env:}", "${env:1A}", "${env:A B}", "${HOME}", "${ENV:A}", "${env:A", "x${env:A-B}"]
)
def test_anything_else_in_their_form_is_refused(text: str) -> None:
    assert len(complaints({"notes": text})) == 1


@pytest.mark.parametrize(
    "block",
    [
        {"dataset": {"main_prompt": "${env:A}"}},
        {"model": {"warmup": {"template": "${env:A}"}}},
        {"algorithm": {"data": {"template": "${env:A}"}}},
    ],
)
def test_a_model_never_reads_a_secret(block: Any) -> None:
    assert len(complaints(block)) == 1
    assert resolve_secrets(block, {"A": "s3cret"}) == block


def test_code_and_prompts_may_use_dollars() -> None:
    assert complaints({"dataset": {"score_fn": "f'${x}'", "items": [{"prompt": "What is ${y}?"}]}}) == []


@pytest.mark.parametrize("token", ["hf_" + "a1B2" * 9, "sk-" + "x" * 40, "ghp_" + "0" * 36, "AKIA" + "A" * 16])
def test_a_secret_itself_is_refused(token: str) -> None:
    said = complaints({"notes": f"use {token}"})

    assert len(said) == 1
    assert "${env:" in said[0]
    assert token not in said[0]


def test_they_are_resolved_where_they_stand() -> None:
    data = {"a": ["${env:X}", {"b": "x-${env:Y}"}], "n": 1, "t": ("${env:X}",)}

    assert resolve_secrets(data, {"X": "1", "Y": "${env:X}"}) == {"a": ["1", {"b": "x-${env:X}"}], "n": 1, "t": ["1"]}


def test_all_that_are_not_set_are_named() -> None:
    with pytest.raises(SpecError, match="X, Y"):
        resolve_secrets({"a": "${env:Y}", "b": "${env:X}", "c": "${env:Z}"}, {"Z": ""})
