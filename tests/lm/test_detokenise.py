"""Incremental text: the pieces joined are the decode of all tokens, and no piece shows half a character."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.lm.chat import decode
from engine.lm.detokenise import Detokeniser, WindowRow
from tests.lm.families import word_tokenizer


def test_pieces_of_any_tokens_join_to_their_decode(tokenizer):
    @given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    def check(ids):
        row = Detokeniser(tokenizer).open()
        text = "".join(row.push(token) for token in ids) + row.flush()
        assert text == decode(tokenizer, ids)

    check()


@given(st.text(max_size=30))
@settings(deadline=None)
def test_text_survives_encoding_and_detokenising(text):
    tokenizer = _byte_tokenizer()
    row = Detokeniser(tokenizer).open()

    pieces = [row.push(token) for token in tokenizer.encode(text, add_special_tokens=False)]

    assert "".join(pieces) + row.flush() == text
    assert all("�" not in piece for piece in pieces) or "�" in text


def test_a_character_of_three_bytes_appears_with_its_last(tokenizer):
    ids = tokenizer.encode("é語", add_special_tokens=False)
    row = Detokeniser(tokenizer).open()

    pieces = [row.push(token) for token in ids]

    assert [piece for piece in pieces if piece] == ["é", "語"] or "".join(pieces) == "é語"
    assert row.flush() == ""


def test_an_unfinished_character_is_flushed_as_the_tokenizer_decodes_it():
    tokenizer = _byte_tokenizer()
    ids = tokenizer.encode("語", add_special_tokens=False)[:2]
    row = Detokeniser(tokenizer).open()

    assert [row.push(token) for token in ids] == ["", ""]
    assert row.flush() == decode(tokenizer, ids)


def test_special_tokens_are_kept(tokenizer):
    row = Detokeniser(tokenizer).open()

    assert row.push(tokenizer.eos_token_id) == "<|eot_id|>"


@pytest.mark.parametrize("text", ["two words", " leading", "a b  c", ""])
def test_a_tokenizer_of_words_goes_through_the_window(text):
    tokenizer = word_tokenizer()
    row = Detokeniser(tokenizer).open()

    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = "".join(row.push(token) for token in ids) + row.flush()

    assert isinstance(row, WindowRow)
    assert pieces == decode(tokenizer, ids)


def _byte_tokenizer():
    from engine.lm.scratch import train_tokenizer

    return train_tokenizer([], 0)
