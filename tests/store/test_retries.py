"""The retry policy by itself: which failure is followed by another attempt, and how long after."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import OWN_FAULT, Cause
from engine.store.retries import BACK_OFF_S, Retries

OOM, LOST, DISK, INTERNAL = Cause.OOM, Cause.LOST, Cause.DISK, Cause.INTERNAL


def test_every_cause_is_either_never_retried_or_has_a_back_off() -> None:
    assert set(BACK_OFF_S) | OWN_FAULT == set(Cause)
    assert not set(BACK_OFF_S) & OWN_FAULT


@pytest.mark.parametrize(
    ("said", "failures", "again"),
    [
        ({}, [INTERNAL], True),
        ({}, [INTERNAL, OOM], True),
        ({}, [INTERNAL, OOM, DISK], False),
        ({"oom": 0}, [OOM], False),
        ({"oom": 1}, [OOM], True),
        ({"oom": 1}, [OOM, OOM], False),
        ({"lost": 10}, [LOST] * 10, True),
        ({"lost": 10}, [LOST] * 11, False),
        ({"lost": 10}, [LOST, LOST, LOST, DISK, DISK], True),
        ({"lost": 10}, [LOST, DISK, DISK, DISK], False),
        # What only a broken store could ask for.
        ({"spec_error": 5}, [Cause.SPEC_ERROR], False),
    ],
)
def test_what_is_tried_again(said: dict[str, int], failures: list[Cause], again: bool) -> None:
    assert Retries.of(3, said).again(failures) is again


@given(st.sampled_from(sorted(BACK_OFF_S)), st.integers(1, 200), st.uuids())
def test_a_wait_doubles_up_to_its_limit_and_is_lengthened_by_a_quarter_at_most(
    cause: Cause, times: int, attempt: UUID
) -> None:
    plain = min(BACK_OFF_S[cause] * 2 ** (times - 1), 600)
    wait = Retries().wait_s([cause] * times, attempt)
    assert plain <= wait <= 1.25 * plain
    assert wait == Retries().wait_s([cause] * times, attempt)


def test_attempts_that_fail_together_do_not_come_back_together() -> None:
    waits = [Retries().wait_s([DISK], UUID(int=number)) for number in range(100)]
    assert len(set(waits)) == 100
    assert max(waits) - min(waits) > 0.5 * 0.25 * 30


def test_the_specs_own_waits_hold_for_every_cause() -> None:
    policy = Retries.of(3, {"backoff": 2.0, "max_backoff": 3.0})
    for cause in BACK_OFF_S:
        assert 2 <= policy.wait_s([cause], UUID(int=1)) <= 2.5
        assert 3 <= policy.wait_s([cause, cause], UUID(int=1)) <= 3.75


def test_an_old_row_is_read_with_the_defaults() -> None:
    assert Retries.of(3, {}) == Retries()
    assert Retries.of(3, {"quarantine": None}).quarantine is None
