"""What a worker lends: never twice, never more than it has, all that a stage needs or none, large ones too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.plan.stage import Needs, Resources
from engine.store.queue import Waiting
from engine.store.tables import StageId
from workers.devices import Devices, Taken, gpu_ids, gpus_here, threads_of


class Feed:
    """Offers from a list: what `queue.Line` gives, without a store."""

    def __init__(self, stages: Iterable[Waiting]) -> None:
        self.left = list(stages)

    def next(self, largest: Needs) -> Waiting | None:
        for stage in self.left:
            if stage.needs.within(largest):
                self.left.remove(stage)
                return stage
        return None


def stage(slots: int = 1, gpus: int = 0, device: str = "auto") -> Waiting:
    return Waiting(StageId(uuid4()), uuid4(), "stage", Resources(slots=slots, gpus=gpus, device=device).needs)


def lent(taken: Taken) -> list[Waiting]:
    return [chosen for chosen, _ in taken.lent]


def test_small_stages_pack_and_get_devices_of_their_own() -> None:
    devices = Devices(3, ["0", "3"])
    taken = devices.take(Feed([stage(gpus=1), stage(gpus=1), stage(gpus=1), stage()]))

    assert [names for _, names in taken.lent] == [("slot:0", "gpu:0"), ("slot:1", "gpu:3")]
    assert gpu_ids(taken.lent[1][1]) == ("3",)


def test_a_stage_that_insists_on_cuda_gets_a_gpu() -> None:
    ((_, names),) = Devices(1, ["5"]).take(Feed([stage(device="cuda")])).lent
    assert gpu_ids(names) == ("5",)


def test_a_stage_without_gpus_gets_none() -> None:
    ((_, names),) = Devices(1, ["0"]).take(Feed([stage()])).lent
    assert gpu_ids(names) == ()


def test_gpus_are_lent_in_the_order_in_which_they_were_given() -> None:
    ((_, names),) = Devices(1, [str(gpu) for gpu in range(12)]).take(Feed([stage(gpus=12)])).lent
    assert gpu_ids(names) == tuple(str(gpu) for gpu in range(12))


def test_a_large_stage_keeps_its_place() -> None:
    devices = Devices(8, [str(gpu) for gpu in range(4)])
    ((_, two),) = devices.take(Feed([stage(gpus=2)])).lent
    large = stage(gpus=4)

    # Two GPUs are free, but they are the large one's; what needs none of them may pass.
    taken = devices.take(Feed([large, stage(gpus=1), stage()]))
    assert [chosen.needs.gpus for chosen in lent(taken)] == [0]
    assert taken.kept == large
    devices.give_back(two)
    assert lent(devices.take(Feed([large, stage(gpus=1)]))) == [large]


def test_where_another_worker_keeps_for_the_large_one_small_ones_pass() -> None:
    devices = Devices(8, [str(gpu) for gpu in range(4)])
    devices.take(Feed([stage(gpus=2)]))
    small = stage(gpus=1)
    taken = devices.take(Feed([stage(gpus=4), small]), lambda stage, left: False)
    assert (lent(taken), taken.kept) == ([small], None)


def test_slots_are_kept_for_a_large_stage_too() -> None:
    devices = Devices(4, ["0", "1"])
    devices.take(Feed([stage(gpus=1), stage()]))
    wide = stage(slots=3, gpus=1)
    taken = devices.take(Feed([wide, stage(), stage()]))
    assert (lent(taken), taken.kept) == ([], wide)


def test_what_can_never_fit_here_holds_nobody_up() -> None:
    small = stage()
    assert lent(Devices(1).take(Feed([stage(gpus=1), stage(slots=2), small]))) == [small]


def test_a_store_that_goes_away_half_way_leaves_everything_free() -> None:
    class Broken(Feed):
        def next(self, largest: Needs) -> Waiting | None:
            if not self.left:
                raise ConnectionError
            return super().next(largest)

    devices = Devices(2, ["0"])
    with pytest.raises(ConnectionError):
        devices.take(Broken([stage(gpus=1)]))
    assert devices.all_free


wishes = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), max_size=6),
        st.booleans(),
        st.lists(st.integers(0, 50), max_size=3),
    ),
    max_size=25,
)


@given(st.integers(1, 6), st.integers(0, 6), wishes)
def test_nothing_is_lent_twice_in_part_or_past_a_reservation(
    slots: int, gpus: int, rounds: list[tuple[list[tuple[int, int]], bool, list[int]]]
) -> None:
    """Against a count of our own: what is out, what it must leave, and what has to have been lent."""
    devices = Devices(slots, [str(gpu) for gpu in range(gpus)])
    out: list[tuple[str, ...]] = []
    for wanted, keeps, returned in rounds:
        free = Needs(slots, gpus) - Needs(
            *(sum(name.startswith(kind) for names in out for name in names) for kind in ("slot:", "gpu:"))
        )
        offered = [stage(*sizes) for sizes in wanted]
        taken = devices.take(Feed(offered), lambda stage, left, keeps=keeps: keeps)
        for chosen, names in taken.lent:
            kinds = Counter(name.partition(":")[0] for name in names)
            assert (kinds["slot"], kinds["gpu"]) == (chosen.needs.slots, chosen.needs.gpus)
            out.append(names)
        every = [name for names in out for name in names]
        assert len(every) == len(set(every))
        assert set(every) <= {f"slot:{index}" for index in range(slots)} | {f"gpu:{index}" for index in range(gpus)}

        expected, kept = [], None
        for one in (one for one in offered if one.needs.within(Needs(slots, gpus))):
            if one.needs.within(free):
                expected.append(one)
                free -= one.needs
            elif keeps and kept is None and free.slots:
                kept = one
                free -= one.needs
        assert (lent(taken), taken.kept) == (expected, kept)
        for index in returned:
            if out:
                devices.give_back(out.pop(index % len(out)))
    for names in out:
        devices.give_back(names)
    assert devices.all_free


def test_gpus_are_counted_without_cuda(tmp_path: Path) -> None:
    for bus in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / bus).mkdir()
    assert gpus_here({}, tmp_path) == ["0", "1"]
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == ["1"]
    assert gpus_here({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert gpus_here({}, tmp_path / "none") == []


def test_a_stage_under_which_workers_died_gets_a_worker_for_itself() -> None:
    devices, suspect = Devices(4), replace(stage(), alone=True)
    ((_, one),) = devices.take(Feed([stage()])).lent
    assert lent(devices.take(Feed([suspect, stage()]))) == []  # and nothing overtakes it
    devices.give_back(one)
    ((chosen, names),) = devices.take(Feed([suspect, stage()])).lent
    assert (chosen.stage_id, names) == (suspect.stage_id, ("slot:0", "slot:1", "slot:2", "slot:3"))
    assert lent(devices.take(Feed([stage()]))) == []


def test_a_suspect_does_not_take_the_place_of_what_is_kept() -> None:
    devices, wide, suspect = Devices(4), stage(slots=2), replace(stage(), alone=True)
    devices.take(Feed([stage(slots=3)]))
    taken = devices.take(Feed([wide, suspect, stage()]))
    assert (lent(taken), taken.kept) == ([], wide)


def test_a_full_worker_has_no_more_threads_than_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))

    assert threads_of(["slot:0", "gpu:0"], slots=1) == 8
    assert threads_of(["slot:0", "gpu:0"], slots=3) == 2
    assert threads_of(["slot:0", "slot:2"], slots=4) == 4
    assert threads_of(["slot:0"], slots=16) == 1
