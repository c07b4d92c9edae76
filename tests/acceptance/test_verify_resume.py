"""`rlx verify-resume` as its user meets it: a real method killed for real, and one that forgets something caught."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from engine.cli.compiling import Compiled, compiled
from engine.cli.verification import verify
from engine.clock import utc_now
from engine.plan.stage import Plan, Stage
from tests.acceptance.rlx_command import ROOT, Rlx

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def variant(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    """A spec whose plan is one small stage of `queue_stages`, which workers find and preload only torch for."""
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("RLX_PRELOAD", "torch")
    learn = Stage("learn", "test.learn", "queue_stages:learn", ())
    return replace(compiled(ROOT / "specs/best_lang.yaml", [], tiny=True)[0], plan=Plan("learn_tiny", 3, (learn,)))


def test_a_stage_that_checkpoints_everything_survives_many_kills(variant: Compiled, tmp_path: Path) -> None:
    found = verify(variant, tmp_path, kills=8, seed=1, now=utc_now)

    assert (found.outcome, found.detail["where"], found.detail["error"]) == ("identical", None, None)
    assert found.kills >= 7
    assert len(found.detail["killed"]) == found.kills
    (stage,) = found.detail["stages"]
    assert (stage["attempts"], stage["fingerprints"]) == (found.kills + 1, 12)


def test_a_stage_that_forgets_its_generator_is_caught(variant: Compiled, tmp_path: Path) -> None:
    (learn,) = variant.plan.stages
    forgetful = replace(variant.plan, stages=(replace(learn, extra={"forgets": True}),))

    found = verify(replace(variant, plan=forgetful), tmp_path, kills=4, seed=1, now=utc_now)

    assert found.outcome == "parted"
    assert found.detail["where"].startswith("learn, step ")
    assert found.detail["where"].endswith(", data order")
    assert found.weights_sha256 is None


def test_a_method_is_killed_again_and_again_and_certified(tmp_path: Path) -> None:
    rlx = Rlx(tmp_path / "home")
    rlx.home.mkdir()

    found = rlx.json("verify-resume", "specs/best_lang_reinforce.yaml", "--kills", "3", "--seed", "3")

    assert (found["outcome"], found["method"]) == ("identical", "reinforce")
    assert found["kills"] >= 2  # the one from outside may come too late
    stages = {stage["name"]: stage for stage in found["detail"]["stages"]}
    assert stages["train"]["attempts"] >= 2
    assert stages["train"]["fingerprints"] > 20
    assert found["weights_sha256"] == stages["train"]["output"]
    assert not list(rlx.home.glob("checkpoints"))

    handle = rlx("submit", "specs/best_lang_reinforce.yaml", "--tiny").strip()
    assert f"resume verified: {found['kills']} kills, identical" in rlx("show", handle).splitlines()
