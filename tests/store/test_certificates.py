"""Certificates: which one counts for a run, and how it reads."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from engine.store import certificates
from engine.store.certificates import Finding
from engine.store.tables import RunId
from tests.store.walk import Queue

CODE = {"version": "0.1.0", "commit": "1234567890", "dirty": False, "diff_sha256": None}
OTHER = {**CODE, "commit": "abcdefabcd"}


@pytest.fixture
def finding(queue: Queue) -> Finding:
    return Finding(
        method="archer",
        versions={"test.model": 1, "test.train": 1, "test.other": 4},
        spec="best_lang",
        spec_hash="a" * 64,
        outcome="identical",
        kills=6,
        seed=0,
        weights_sha256="b" * 64,
        code=CODE,
        packages={"torch": "2.13.0"},
        hardware={"cpu": "x"},
        detail={"where": None, "stages": [], "killed": [], "error": None},
        created_at=queue.clock(),
    )


def record(queue: Queue, *findings: Finding) -> None:
    with queue.db.write() as session:
        for finding in findings:
            certificates.record(session, finding)


def of_run(queue: Queue, method: str = "archer", *edges: str) -> Finding | None:
    run = queue.submit(*(edges or ("model", "train<model")))
    with queue.db.read() as session:
        return certificates.for_run(session, RunId(run.id), method=method, code=CODE)


def test_a_certificate_is_read_as_it_was_written(queue: Queue, finding: Finding):
    record(queue, finding)

    assert of_run(queue) == finding


def test_another_method_or_another_version_of_a_stage_has_none(queue: Queue, finding: Finding):
    record(queue, finding, replace(finding, method="ppo", versions={"test.model": 1, "test.train": 2}))

    assert of_run(queue, "reinforce") is None
    assert of_run(queue, "ppo") is None
    assert of_run(queue, "archer", "model", "unknown<model") is None


def test_the_newest_counts_and_one_of_the_runs_own_code_before_it(queue: Queue, finding: Finding):
    older = replace(finding, kills=1, created_at=finding.created_at - timedelta(days=1))
    record(queue, finding, older)
    assert of_run(queue) == finding

    foreign = replace(finding, code=OTHER, created_at=finding.created_at + timedelta(days=1))
    record(queue, foreign)
    assert of_run(queue) == finding

    newest = replace(finding, outcome="parted", created_at=finding.created_at + timedelta(hours=1))
    record(queue, newest)
    assert of_run(queue) == newest


@pytest.mark.parametrize(
    "change, code, says",
    [
        ({}, CODE, "resume verified: 6 kills, identical"),
        ({"kills": 1}, CODE, "resume verified: 1 kill, identical"),
        ({}, OTHER, "resume verified: 6 kills, identical (by other code: 0.1.0 at 1234567)"),
        (
            {"outcome": "parted", "detail": {"where": "train, step 2, update"}},
            CODE,
            "resume not verified: 6 kills, parted at train, step 2, update",
        ),
        ({"outcome": "failed"}, CODE, "resume not verified: 6 kills, failed"),
    ],
)
def test_a_certificate_in_words(finding: Finding, change: dict, code: dict, says: str):
    assert certificates.in_words(replace(finding, **change), code) == says
