"""Token-level PPO end to end on a tiny model, interrupted and not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from engine.methods.dialogue.final import evaluate
from engine.methods.ppo.config import PPO
from engine.methods.ppo.stages import train
from engine.methods.reinforce import stages as reinforce
from engine.methods.reinforce.config import Reinforce
from engine.runtime.context import Stopped

SMALL = {"iterations": 3, "epochs": 1, "checkpoint_every": 1, "episodes": {"environments": 3, "max_tokens": 72}}
METHODS = {"ppo": (PPO, train), "reinforce": (Reinforce, reinforce.train)}


def fingerprint(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.safetensors"))]


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(stage: Any, method: str) -> None:
    schema, run = METHODS[method]
    algorithm = schema.model_validate(SMALL).model_dump(mode="json")
    whole = stage(algorithm, name="whole")
    run(whole)
    part = stage(algorithm, name="parts")
    part.request_stop()
    for _ in range(2):
        with pytest.raises(Stopped):
            run(part)
    last = stage(algorithm, name="parts")
    run(last)

    assert fingerprint(last.output_dir) == fingerprint(whole.output_dir)
    assert AutoModelForCausalLM.from_pretrained(last.output_dir / "best" / "generator") is not None
    assert dict(whole.curve("cost/scored_episodes"))[3] == 9
    assert dict(whole.curve("policy/ratio_error"))[1] < 1e-3


def test_the_final_evaluation(stage: Any) -> None:
    algorithm = PPO.model_validate(SMALL).model_dump(mode="json")
    trained = stage(algorithm)
    train(trained)
    ctx = stage(algorithm, name="evaluate", train=trained.output_dir)
    evaluate(ctx)
    assert {e.metric for e in ctx.evaluations} == {"final/untrained/score", "final/score"}
