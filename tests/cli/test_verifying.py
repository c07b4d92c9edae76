"""`rlx verify-resume`: its verdict and exit code, and the certificate in `rlx show`. Its proof is in acceptance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli import verification
from engine.cli.provenance import code
from engine.cli.verification import StageFinding, conclude
from engine.clock import utc_now
from engine.store import certificates
from engine.store.certificates import Finding, Verdict

ROOT = Path(__file__).resolve().parents[2]
SPEC = str(ROOT / "specs" / "best_lang.yaml")
SAME = StageFinding("train", 40, 7, parted=None, output="b" * 64, trained=True)


def finding(outcome: Verdict = "identical", *, error: str | None = None, **change: str | None) -> Finding:
    return Finding(
        method="archer",
        versions={"lm.prepare": 1, "archer.train": 1, "archer.evaluate": 1},
        spec="best_lang",
        spec_hash="a" * 64,
        outcome=outcome,
        kills=6,
        seed=0,
        weights_sha256="b" * 64,
        code=code(ROOT),
        packages={"torch": "2.13.0"},
        hardware={},
        detail={
            "where": change.get("where"),
            "stages": [
                {"name": "train", "fingerprints": 40, "attempts": 7, "parted": change.get("where"), "output": None}
            ],
            "killed": [],
            "error": error,
        },
        created_at=utc_now(),
    )


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Have the verification find this, and leave its home where we see it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def set_up(result: Finding) -> None:
        monkeypatch.setattr(verification, "verify", lambda *_, **__: result)

    return set_up


def test_identical_runs_leave_a_certificate_and_nothing_else(rlx, home, found, tmp_path):
    found(finding())

    done = rlx("verify-resume", SPEC)

    assert done.code == 0
    assert done.out.splitlines()[-1] == "resume verified: 6 kills, identical"
    assert list(tmp_path.glob("rlx-verify-*")) == []


def test_parted_runs_exit_with_1_and_say_where_they_are(rlx, home, found, tmp_path):
    found(finding("parted", where="train, step 2, update"))

    done = rlx("verify-resume", SPEC)

    assert done.code == 1
    assert done.out.splitlines()[-1] == "resume not verified: 6 kills, parted at train, step 2, update"
    (kept,) = tmp_path.glob("rlx-verify-*")
    assert f"RLX_HOME={kept}" in done.err


def test_a_run_that_does_not_get_to_its_end_says_why(rlx, home, found):
    found(finding("failed", error="the disturbed run did not get to its end: stage train failed (internal): no rng"))

    done = rlx("verify-resume", SPEC, "--json")

    assert done.code == 1
    assert done.data["outcome"] == "failed"
    assert "no rng" in done.err


def test_without_a_kill_nothing_is_certified(rlx, lab, found):
    found(replace(finding(), kills=0))

    assert rlx("verify-resume", SPEC).code == 1
    lab.succeeded(code=code(ROOT))
    assert rlx("show", "@last", "--json").data["certificate"] is None


def test_a_sweep_is_not_verified(rlx, home):
    done = rlx("verify-resume", SPEC, "seed=1,2")

    assert done.code == 2
    assert "sweep" in done.err


def test_show_tells_what_was_verified(rlx, lab):
    lab.succeeded(code=code(ROOT))
    assert rlx("show", "@last", "--json").data["certificate"] is None
    assert "resume" not in rlx("show", "@last").out.splitlines()[1]

    with lab.db.write() as session:
        certificates.record(session, finding())

    assert "resume verified: 6 kills, identical" in rlx("show", "@last").out.splitlines()
    data = rlx("show", "@last", "--json").data["certificate"]
    assert (data["method"], data["kills"], data["says"]) == ("archer", 6, "resume verified: 6 kills, identical")


@pytest.mark.parametrize(
    "stage, where",
    [
        (SAME, None),
        (StageFinding("train", 40, 7, parted="step 1, update", output="b" * 64, trained=True), "train, step 1, update"),
        (StageFinding("train", 40, 7, parted=None, output=None, trained=True), "train, its output"),
    ],
)
def test_the_first_stage_that_parts_is_where_the_runs_part(stage: StageFinding, where: str | None):
    last = StageFinding(
        "evaluate", 9, 1, parted=None if where is None else "step 0, sampling", output=None, trained=False
    )
    stages = [SAME, stage, last] if where else [SAME, stage]

    assert conclude(stages) == ("parted" if where else "identical", where)
