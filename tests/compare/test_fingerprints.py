from __future__ import annotations

from engine.compare.fingerprints import parting
from engine.store.fingerprints import Fingerprint, Layer

STREAM = [
    Fingerprint(0, 1, Layer.DATA, 10),
    Fingerprint(1, 1, Layer.UPDATE, 11),
    Fingerprint(2, 1, Layer.WEIGHTS, 12),
    Fingerprint(3, 2, Layer.DATA, 20),
]


def test_equal_streams_do_not_part():
    assert parting(STREAM, list(STREAM)) is None
    assert parting([], []) is None


def test_the_first_difference_is_named_though_everything_after_it_differs():
    other = [STREAM[0], *(entry._replace(value=entry.value + 1) for entry in STREAM[1:])]

    found = parting(STREAM, other)

    assert found is not None
    assert (found.step, found.layer) == (1, Layer.UPDATE)
    assert (found.expected, found.found) == (STREAM[1], other[1])
    assert str(found) == "step 1, update"


def test_a_stream_that_ends_early_parts_where_it_ends():
    for one, other in ((STREAM, STREAM[:3]), (STREAM[:3], STREAM)):
        found = parting(one, other)
        assert found is not None
        assert (found.step, found.layer) == (2, Layer.DATA)


def test_another_layer_at_the_same_place_is_a_difference():
    other = [*STREAM[:2], Fingerprint(2, 1, Layer.SAMPLING, 12), STREAM[3]]
    assert str(parting(STREAM, other)) == "step 1, weights"
