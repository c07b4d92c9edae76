"""Fixtures of the store's tests."""

from __future__ import annotations

import pytest

from engine.store.session import Database
from tests.store.walk import Clock, Queue


@pytest.fixture
def queue(db: Database, clock: Clock) -> Queue:
    """A worker and a clock on an empty store."""
    return Queue(db, clock)
