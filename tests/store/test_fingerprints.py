"""Streams of fingerprints in both databases: in order, to the last bit, struck out where a stage goes back."""

from __future__ import annotations

import pytest

from engine.errors import StaleAttempt
from engine.store import fingerprints
from engine.store.fingerprints import Fingerprint, Layer
from tests.store.walk import Queue


def entries(first: int, count: int, salt: int = 0) -> list[Fingerprint]:
    layers = list(Layer)
    return [
        Fingerprint(place, place // 3, layers[place % 5], (2**64 - 1 - place * 7 - salt))
        for place in range(first, first + count)
    ]


def add(queue: Queue, claimed, *blocks: list[Fingerprint]) -> None:
    with queue.db.write() as session:
        for block in blocks:
            fingerprints.add(session, stage_id=claimed.stage_id, number=claimed.number, entries=block)


def stream(queue: Queue, claimed) -> list[Fingerprint]:
    with queue.db.read() as session:
        return fingerprints.of_stage(session, claimed.stage_id)


def test_a_stream_comes_back_as_it_went_in(queue: Queue):
    claimed = queue.claim(queue.submit())
    add(queue, claimed, entries(4, 300), entries(0, 4))

    assert stream(queue, claimed) == entries(0, 304)


def test_a_block_that_is_written_again_replaces_the_earlier_one(queue: Queue):
    claimed = queue.claim(queue.submit())
    add(queue, claimed, entries(0, 4), entries(4, 4))
    add(queue, claimed, entries(4, 5, salt=1))

    assert stream(queue, claimed) == [*entries(0, 4), *entries(4, 5, salt=1)]


def test_a_newer_attempt_strikes_out_what_it_will_do_again(queue: Queue):
    run = queue.submit()
    first = queue.claim(run, lease_s=15)
    add(queue, first, entries(0, 4), entries(4, 4), entries(8, 4))
    queue.clock.advance(60)
    queue.expire()
    second = queue.claim(run)

    with queue.db.write() as session:
        fingerprints.rewind(session, stage_id=second.stage_id, number=second.number, place=4)

    assert stream(queue, second) == entries(0, 4)
    with pytest.raises(StaleAttempt):
        add(queue, first, entries(4, 4))
    assert stream(queue, second) == entries(0, 4)


def test_a_stage_without_fingerprints_has_an_empty_stream(queue: Queue):
    assert stream(queue, queue.claim(queue.submit())) == []
