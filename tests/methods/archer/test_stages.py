"""ArCHer's stages end to end on a tiny model: what they leave, and that an interruption leaves no trace."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import SpecError
from engine.methods.archer.stages import evaluate, train
from engine.runtime.context import Stopped
from engine.runtime.local import LocalContext

SMALL: dict[str, Any] = {
    "name": "archer",
    "iterations": 4,
    "checkpoint_every": 1,
    "episodes": {"environments": 2, "decisions": 2, "max_tokens": 72},
    "ranker": {"candidates": 2, "batch_size": 4, "updates": 2, "replay": {"capacity": 40, "min_fill": 8}},
    "generator": {"start_after": 1},
}
PAPER: dict[str, Any] = {
    **SMALL,
    "variant": "paper",
    "ranker": {"batch_size": 4, "updates": 2, "replay": {"capacity": 40, "min_fill": 8}},
    "generator": {"start_after": 1, "batch_size": 4},
}


def config(**changes: Any) -> dict[str, Any]:
    """As the plan hands it over: every default written out."""
    from engine.methods.archer.config import Archer

    return Archer.model_validate({**SMALL, **changes}).model_dump(mode="json")


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


class Interrupted(LocalContext):
    """Stops the stage at the given reports of progress, as a cancel would."""

    at: frozenset[int] = frozenset()

    def log(self, step: int, metrics: Any = None, **more: float) -> None:
        super().log(step, metrics, **more)
        if step in self.at:
            self.request_stop()


def test_a_score_that_a_squashed_value_cannot_be_is_refused(stage: Any) -> None:
    context = stage(config(), name="costly")
    context.config["dataset"] = {**context.config["dataset"], "turn_cost": 0.5}
    with pytest.raises(SpecError, match=r"an utterance earned -0\.5.*sigmoid: false"):
        train(context)


@pytest.mark.parametrize("algorithm", [config(), PAPER, config(generator={"mode": "frozen"})])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(stage: Any, algorithm: dict[str, Any]) -> None:
    if algorithm is PAPER:
        algorithm = config(**PAPER)
    whole = stage(algorithm, name="whole")
    train(whole)

    for at in range(4):
        part = stage(algorithm, name="parts")
        part.__class__, part.at = Interrupted, frozenset({at})
        with pytest.raises(Stopped):
            train(part)
    last = stage(algorithm, name="parts")
    train(last)

    assert fingerprint(last.output_dir) == fingerprint(whole.output_dir)
    assert fingerprint(whole.output_dir / "latest")
    evaluated = {(e.step, e.metric, e.split): e.items for e in whole.evaluations}
    assert {step for step, _, _ in evaluated} == {0, 2, 4}
    assert {(e.step, e.metric, e.split): e.items for e in last.evaluations}.items() <= evaluated.items()


def test_what_training_leaves_behind(stage: Any, functions: Any) -> None:
    ctx = stage(config())
    train(ctx)

    for label in ("best", "latest"):
        model = AutoModelForCausalLM.from_pretrained(ctx.output_dir / label / "generator")
        assert model.config.num_hidden_layers == 2
        assert (ctx.output_dir / label / "ranker" / "model.safetensors").is_file()
    assert ctx.labelled("latest") is not None
    assert ctx.labelled("best") is not None

    means = {
        e.step: sum(sum(i.scores) for i in e.items)
        for e in ctx.evaluations
        if (e.metric, e.split) == ("score", "train")
    }
    best = json.loads((ctx.labelled("best") / "manifest.json").read_text())["step"]
    assert means[best] == pytest.approx(max(means.values()))
    assert all(e.functions_hash == functions.hash for e in ctx.evaluations)
    assert {s.split for s in ctx.samples} == {"train", "heldout"}

    costs = [dict(ctx.curve(f"cost/{name}")) for name in ("scored_episodes", "generated_tokens", "seconds")]
    for cost in costs:
        values = [cost[step] for step in sorted(cost)]
        assert values == sorted(values)
        assert values[-1] > 0
    assert len(ctx.curve("policy/kl")) == 3  # iterations 2, 3 and 4


def test_a_frozen_generator_stays_as_it_was(stage: Any, model_dir: Path) -> None:
    ctx = stage(config(generator={"mode": "frozen"}))
    train(ctx)
    start = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    end = AutoModelForCausalLM.from_pretrained(ctx.output_dir / "latest" / "generator").state_dict()
    assert all(torch.equal(value, end[name]) for name, value in start.items())


def test_the_final_evaluation_has_the_untrained_model_beside_the_best(stage: Any) -> None:
    trained = stage(config())
    train(trained)
    ctx = stage(config(), name="evaluate", train=trained.output_dir)
    evaluate(ctx)

    rows = {(e.metric, e.split): e for e in ctx.evaluations}
    assert set(rows) == {
        (f"final/{metric}", split)
        for metric in ("untrained/score", "score", "score/generator")
        for split in ("train", "heldout")
    }
    assert all(len(item.scores) == 4 for e in rows.values() for item in e.items)
    table = json.loads((ctx.output_dir / "scores.json").read_text())
    row = rows["final/score", "heldout"]
    assert table["score"]["heldout"] == pytest.approx(sum(row.items[0].scores) / 4)
