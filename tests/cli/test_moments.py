"""Which moments are chosen: some of every kind, by the seed alone, and never more than there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.cli.moments import Lived, choose
from engine.runtime.interruption import Moment
from engine.store.fingerprints import Fingerprint, Layer

TRAIN = Lived(
    stream=[Fingerprint(place, place // 4, Layer.DATA, place) for place in range(12)],
    saves=[Moment("train", kind, place) for place in (4, 8, 12) for kind in ("draft", "renamed")],
    seconds=5.0,
)
LIVES = {"model": Lived([Fingerprint(0, 1, Layer.DATA, 0)], [], 1.0), "train": TRAIN, "empty": Lived([], [], 1.0)}


@given(st.integers())
def test_four_kills_are_one_of_each_kind(seed: int):
    kills = choose(LIVES, 4, seed)

    assert kills.outside
    assert sorted(moment.kind for moment in kills.moments) == ["draft", "note", "renamed"]
    (edge,) = [moment for moment in kills.moments if moment.kind == "note"]
    assert edge.place in (4, 8)


@given(st.integers(1, 40), st.integers())
def test_moments_are_there_and_distinct_and_the_seed_decides(count: int, seed: int):
    kills = choose(LIVES, count, seed)

    there = {*TRAIN.saves, *(Moment("train", "note", place) for place in range(12)), Moment("model", "note", 0)}
    assert set(kills.moments) <= there
    assert len(set(kills.moments)) == len(kills.moments)
    assert len(kills.moments) + kills.outside == min(count, len(there) + 1)
    assert kills == choose(LIVES, count, seed)


def test_other_seeds_choose_other_moments():
    assert len({choose(LIVES, 6, seed) for seed in range(20)}) > 10


def test_a_plan_that_notes_and_saves_nothing_can_only_be_killed_from_outside():
    assert choose({"empty": LIVES["empty"]}, 5, 0) == choose({"empty": LIVES["empty"]}, 2, 0)
    assert choose({"empty": LIVES["empty"]}, 5, 0).moments == ()
