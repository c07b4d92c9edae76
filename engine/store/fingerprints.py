"""The stream of fingerprints that a stage leaves: what it computed, in the order in which it did, 64 bits at a time.

Two runs are the same as long as their streams are. What is hashed, and when, is the runtime's (`runtime.trace`); how
two streams are compared, `compare.fingerprints`'. A block of entries is one row of 17 bytes an entry; a stage that
resumes strikes out the blocks behind its checkpoint, at which a block always ends, and writes them again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from engine.store.stages import Fence, fenced
from engine.store.tables import FingerprintBlock, StageId
from engine.store.upsert import insert


class Layer(StrEnum):
    """What a fingerprint is of, in the order in which one thing follows from another."""

    DATA = "data order"
    """Which items, episodes or remembered transitions were drawn."""
    SAMPLING = "sampling"
    """What the model said: token ids and their log-probabilities."""
    REWARD = "reward"
    """What the user's functions answered."""
    UPDATE = "update"
    """Losses and gradient norms of an optimiser step."""
    WEIGHTS = "weights"
    """What the step left of the weights."""


class Fingerprint(NamedTuple):
    """One entry of a stage's stream."""

    place: int
    """In the stage's stream, from 0."""
    step: int
    layer: Layer
    value: int
    """64 bits."""


_ENTRY = struct.Struct("<qBQ")
_LAYERS = (Layer.DATA, Layer.SAMPLING, Layer.REWARD, Layer.UPDATE, Layer.WEIGHTS)
"""A layer is stored as its index here: only ever append."""
_CODES = {layer: code for code, layer in enumerate(_LAYERS)}


def add(
    session: Session, *, stage_id: StageId, number: int, entries: Sequence[Fingerprint], fence: Fence = fenced
) -> None:
    """Store neighbouring entries of attempt `number`; a block at the same place is replaced. Raises StaleAttempt."""
    fence(session, stage_id, number)
    block = b"".join(_ENTRY.pack(entry.step, _CODES[entry.layer], entry.value) for entry in entries)
    session.execute(
        insert(session, FingerprintBlock)
        .values(stage_id=stage_id, first=entries[0].place, entries=block)
        .on_conflict_do_update(
            index_elements=[FingerprintBlock.stage_id, FingerprintBlock.first], set_={"entries": block}
        )
    )


def rewind(session: Session, *, stage_id: StageId, number: int, place: int, fence: Fence = fenced) -> None:
    """Strike out what earlier attempts noted from `place` on, where attempt `number` goes on. Raises StaleAttempt."""
    fence(session, stage_id, number)
    session.execute(
        delete(FingerprintBlock)
        .where(FingerprintBlock.stage_id == stage_id, FingerprintBlock.first >= place)
        .execution_options(synchronize_session=False)
    )


def of_stage(session: Session, stage_id: StageId) -> list[Fingerprint]:
    """The whole stream of a stage, in order."""
    rows = session.execute(
        select(FingerprintBlock.first, FingerprintBlock.entries)
        .where(FingerprintBlock.stage_id == stage_id)
        .order_by(FingerprintBlock.first)
    )
    return [entry for first, block in rows for entry in _unpacked(first, block)]


def _unpacked(first: int, block: bytes) -> Iterator[Fingerprint]:
    for place, (step, code, value) in enumerate(_ENTRY.iter_unpack(block), first):
        yield Fingerprint(place, step, _LAYERS[code], value)
