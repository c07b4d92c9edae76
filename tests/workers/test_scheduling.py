"""A cluster under a pretended clock, decided by the product's own code: nothing lent twice, nobody starved."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from bench.scheduler import GPUS, WORKERS, InMemory, Job, Peer, Report, make_jobs, ours, simulate


def test_a_thousand_stages_without_one_violation_and_better_used_than_by_strict_fifo() -> None:
    """Of 1 to 8 GPUs, on 4 workers of 8, with random durations."""
    jobs = make_jobs(1000, seed=0, load=0.9, users=3)

    report, fifo = simulate(jobs, InMemory()), simulate(jobs, Peer(blocks=True))

    assert report.violations == []
    assert sorted(report.begun) == [job.number for job in jobs]
    assert report.utilisation > fifo.utilisation
    assert mean_wait(jobs, report) < mean_wait(jobs, fifo)


def test_on_the_real_store_the_same_is_decided(tmp_path: Path) -> None:
    """One stage at a time, so that no two are ready since the same moment; three users."""
    jobs = make_jobs(80, seed=3, load=1.2, users=3, batch=1)

    report, twin = ours(jobs, tmp_path), simulate(jobs, InMemory())

    assert report.violations == []
    assert report.begun == twin.begun
    assert report.order == twin.order


def test_a_large_stage_is_not_starved_by_a_stream_of_small_ones() -> None:
    """Small ones keep coming: first fit lets the large one wait until they cease, we until one worker has drained."""
    rng = random.Random(1)
    small = [Job(number, 1, number * 30.0, rng.uniform(600, 1800)) for number in range(3000)]
    large = Job(3000, GPUS, 5000.0, 600.0)
    jobs = [*small, large]

    report, first_fit = simulate(jobs, InMemory()), simulate(jobs, Peer(blocks=False))

    assert report.violations == []
    # Once all that came before it had begun, it waited for what ran on one worker, and for nothing else.
    its_turn = max(report.begun[job.number] for job in small if job.arrives <= large.arrives)
    assert report.begun[large.number] - its_turn <= max(job.seconds for job in small)
    assert first_fit.begun[large.number] >= small[-1].arrives


def test_while_one_worker_drains_the_others_go_on() -> None:
    """Four full workers, a large stage, and small ones behind it: only one worker's devices lie idle."""
    running = [Job(number, 1, 0.0, 1000.0 + 100 * (number // 8)) for number in range(WORKERS * GPUS)]
    short = [replace(job, seconds=100.0) for job in running[::8]]
    running = [short[job.number // 8] if job.number % 8 == 0 else job for job in running]
    large = Job(100, GPUS, 50.0, 10.0)
    behind = [Job(200 + number, 1, 60.0, 10.0) for number in range(3)]

    report = simulate([*running, large, *behind], InMemory())

    # A GPU of every worker came free after 100 seconds: three were lent on, one was kept for the large stage.
    assert [report.begun[job.number] for job in behind] == [100.0] * 3
    assert report.begun[large.number] in (1000.0, 1100.0, 1200.0, 1300.0)


def test_a_user_with_a_thousand_stages_does_not_starve_one_with_two() -> None:
    many = [Job(number, 1, 0.0, 600.0, "ann") for number in range(1000)]
    few = [Job(1000 + number, 1, 1.0, 600.0, "bob") for number in range(2)]

    report = simulate([*many, *few], InMemory())

    # As soon as anything comes free.
    assert [report.begun[job.number] for job in few] == [600.0, 600.0]


def test_two_users_hold_alike_however_many_stages_each_has() -> None:
    many = [Job(number, 1, 0.0, 600.0 + number % 7, "ann") for number in range(500)]
    some = [Job(1000 + number, 1, 1.0, 600.0 + number % 5, "bob") for number in range(100)]

    report = simulate([*many, *some], InMemory())

    # In the second wave each gets half of the 32 GPUs: of Bob's stages 32 have begun where ann's are 64 at most.
    begun = sorted(report.begun[job.number] for job in some)
    second_wave = [time for time in begun if time < 1200]
    assert len(second_wave) >= WORKERS * GPUS // 2


def mean_wait(jobs: list[Job], report: Report) -> float:
    waits = report.waits(jobs, lambda job: True)
    return sum(waits) / len(waits)
