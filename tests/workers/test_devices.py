"""What a worker lends: never twice, never more than it has, and never only to the small."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from engine.plan.stage import Resources
from engine.store.queue import Waiting
from engine.store.tables import StageId
from workers.devices import Devices, gpu_ids, gpus_here


def stage(slots: int = 1, gpus: int = 0, device: str = "auto") -> Waiting:
    return Waiting(StageId(uuid4()), uuid4(), "stage", Resources(slots=slots, gpus=gpus, device=device))


def test_small_stages_pack_and_get_devices_of_their_own() -> None:
    devices = Devices(3, ["0", "3"])
    taken = devices.take([stage(gpus=1), stage(gpus=1), stage(gpus=1), stage()])

    assert [names for _, names in taken] == [("slot:0", "gpu:0"), ("slot:1", "gpu:3")]
    assert gpu_ids(taken[1][1]) == ("3",)


def test_a_stage_that_insists_on_cuda_gets_a_gpu() -> None:
    ((_, names),) = Devices(1, ["5"]).take([stage(device="cuda")])
    assert gpu_ids(names) == ("5",)


def test_a_stage_without_gpus_gets_none() -> None:
    ((_, names),) = Devices(1, ["0"]).take([stage()])
    assert gpu_ids(names) == ()


def test_a_large_stage_keeps_its_place() -> None:
    devices = Devices(8, [str(gpu) for gpu in range(4)])
    ((_, two),) = devices.take([stage(gpus=2)])
    large = stage(gpus=4)

    # Two GPUs are free, but they are the large one's; what needs none of them may pass.
    assert [chosen.resources.gpus for chosen, _ in devices.take([large, stage(gpus=1), stage()])] == [0]
    devices.give_back(two)
    assert [chosen for chosen, _ in devices.take([large, stage(gpus=1)])] == [large]


def test_what_can_never_fit_here_holds_nobody_up() -> None:
    small = stage()
    assert [chosen for chosen, _ in Devices(1).take([stage(gpus=1), stage(slots=2), small])] == [small]


@given(
    st.integers(1, 4),
    st.integers(0, 4),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.booleans()), max_size=30),
)
def test_nothing_is_lent_twice_and_everything_comes_back(
    slots: int, gpus: int, wishes: list[tuple[int, int, bool]]
) -> None:
    devices = Devices(slots, [str(gpu) for gpu in range(gpus)])
    out: list[tuple[str, ...]] = []
    for wanted_slots, wanted_gpus, returns in wishes:
        for chosen, names in devices.take([stage(wanted_slots, wanted_gpus)]):
            assert len(names) == chosen.resources.slots + chosen.resources.gpus
            out.append(names)
        lent = [name for names in out for name in names]
        assert len(lent) == len(set(lent))
        assert sum(name.startswith("slot:") for name in lent) <= slots
        assert sum(name.startswith("gpu:") for name in lent) <= gpus
        if returns and out:
            devices.give_back(out.pop(0))
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
