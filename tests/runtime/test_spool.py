"""Reports on the local disk: in order, whole, and in one process's hands."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DiskError
from engine.runtime.context import Evaluation, ItemScore, Sample
from engine.runtime.reports import Checkpointed, Evaluated, Progressed, Report, Rewound, Sampled, dump, load
from engine.runtime.spool import DamagedSpool, Spool, folder_of, left

NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
STAGE = UUID(int=7)


def said(first: int, *texts: str) -> Sampled:
    return Sampled(first, tuple(Sample(0, text) for text in texts))


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool.open(tmp_path, STAGE, 1)
    yield spool
    spool.close()


def drained(spool: Spool, most: int = 1) -> list[Report]:
    found: list[Report] = []
    while spool.waiting:
        batch = spool.first(most)
        found += batch.reports
        spool.strike_off(batch.end)
    return found


REPORTS: list[Report] = [
    Sampled(3, (Sample(1, "a\x00\ud800 ü", 0.1, 4, "heldout", "search", {"steps": [1, None, "x"]}), Sample(2, ""))),
    Evaluated(
        Evaluation(5, "score", [ItemScore(0, (0.1, 1 / 3)), ItemScore(7, ())], "heldout", "f" * 64, {"seconds": 2.5}),
        (0.05, 0.3),
        NOW,
    ),
    Checkpointed(5, ("latest", "best"), "/c/attempt-1/step-5", "0" * 64, 1 << 40, NOW),
    Rewound(2, 17),
    Progressed(0.5, 2, "half", NOW),
]


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.kind)
def test_a_report_comes_back_from_its_line_as_it_was(report: Report) -> None:
    line = dump(report)
    assert "\n" not in line
    assert load(line) == report


def test_numbers_of_numpy_are_numbers_on_the_disk() -> None:
    made = Sampled(0, (Sample(np.int64(1), "t", np.float32(0.5), np.int64(2), data={"q": np.array([1.0, 2.0])}),))  # type: ignore[arg-type]
    assert load(dump(made)) == Sampled(0, (Sample(1, "t", 0.5, 2, data={"q": [1.0, 2.0]}),))


def test_what_is_no_report_is_told(tmp_path: Path) -> None:
    for line in ("", "[]", '["news",{}]', '["rewind",{"attempt":1}]', "{"):
        with pytest.raises(ValueError):
            load(line)


@given(sizes=st.lists(st.integers(1, 4), max_size=30), most=st.integers(1, 9), again=st.integers(0, 5))
def test_reports_come_out_in_the_order_in_which_they_went_in(sizes: list[int], most: int, again: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        spool = Spool.open(Path(root), STAGE, 1)
        first, put = 0, []
        for place, size in enumerate(sizes):
            put.append(said(first, *(f"{first + n}" for n in range(size))))
            first += size
            spool.append([put[-1]])
            if place % 3 == 2:  # its process dies, and another goes on
                spool.close()
                spool = Spool.open(Path(root), STAGE, 1)
        found: list[Report] = []
        while spool.waiting:
            batch = spool.first(most)
            if again:  # delivered, but the process died before it was struck off
                again -= 1
                assert spool.first(most) == batch
                continue
            found += batch.reports
            spool.strike_off(batch.end)
        assert found == put
        spool.close()
        assert not list(Path(root).iterdir())


def test_a_checkpoint_ends_a_batch(spool: Spool) -> None:
    spool.append([said(0, "a"), REPORTS[2], said(1, "b")])
    assert [report.kind for report in spool.first(100).reports] == ["samples", "checkpoint"]


def test_what_is_put_while_a_batch_is_delivered_waits_behind_it(spool: Spool) -> None:
    spool.append([said(0, "a")])
    batch = spool.first(1)
    spool.append([said(1, "b")])
    spool.strike_off(batch.end)
    assert drained(spool) == [said(1, "b")]


def test_a_line_torn_by_a_crash_is_left_out_and_the_next_is_whole(spool: Spool) -> None:
    spool.append([said(0, "a")])
    file = spool.folder / "reports.jsonl"
    with file.open("ab") as opened:
        opened.write(dump(said(1, "torn")).encode()[:-3])
    assert spool.first(100).reports == (said(0, "a"),)
    spool.append([said(1, "b")])
    assert drained(spool) == [said(0, "a"), said(1, "b")]


def test_nothing_but_a_torn_line_is_nothing(spool: Spool) -> None:
    (spool.folder / "reports.jsonl").write_bytes(b'["samp')
    assert drained(spool) == []
    assert not spool.waiting


def test_damage_in_the_middle_is_told_and_nothing_after_it_is_delivered(spool: Spool) -> None:
    spool.append([said(0, "a"), said(1, "b"), said(2, "c")])
    file = spool.folder / "reports.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"b"', b'"b\xff'))
    batch = spool.first(1)
    assert batch.reports == (said(0, "a"),)
    spool.strike_off(batch.end)
    with pytest.raises(DamagedSpool, match="byte"):
        spool.first(1)


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses writes past `size`, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_takes_nothing_half(spool: Spool) -> None:
    spool.append([said(0, "a")])
    length = (spool.folder / "reports.jsonl").stat().st_size
    with no_file_longer_than(length + 20), pytest.raises(DiskError, match="rlx resume"):
        spool.append([said(1, "b" * 100)])
    spool.append([said(1, "c")])
    assert drained(spool) == [said(0, "a"), said(1, "c")]


def _hold(root: Path, held: object, let_go: object) -> None:
    spool = Spool.open(root, STAGE, 1)
    spool.append([said(0, "a")])
    held.set()  # type: ignore[attr-defined]
    let_go.wait()  # type: ignore[attr-defined]


def test_one_process_holds_a_spool_and_the_kernel_takes_it_from_the_dead(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held, let_go = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(tmp_path, held, let_go))
    process.start()
    assert held.wait(60)
    folder = folder_of(tmp_path, STAGE, 1)
    assert Spool.take(folder) is None
    process.kill()
    process.join(60)

    spool = Spool.take(folder, within_s=10)
    assert spool is not None
    assert drained(spool) == [said(0, "a")]
    spool.close()
    assert list(left(tmp_path)) == []


def test_a_spool_is_found_by_its_name(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, STAGE, 12)
    (tmp_path / "something else").mkdir()
    assert [(stage, number) for _, stage, number in left(tmp_path)] == [(STAGE, 12)]
    aside = spool.set_aside()
    assert aside.is_dir()
    assert list(left(tmp_path)) == []
    assert list(left(tmp_path / "nowhere")) == []
