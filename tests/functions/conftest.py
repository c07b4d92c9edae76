from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import waiting


@pytest.fixture
def until() -> Callable[..., object]:
    """`until(condition)` waits for what happens in another process, boundedly."""
    return waiting.until
