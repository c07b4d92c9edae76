"""Stages whose episodes a vLLM engine samples: it has the learner's weights at every iteration, and ends with them."""

from __future__ import annotations

import pytest
import torch

from engine.lm.policy import load_policy
from engine.methods.archer import stages as archer
from engine.methods.archer.config import Archer
from engine.methods.dialogue.sampling import samplers
from engine.methods.ppo import stages as ppo
from engine.methods.ppo.config import PPO
from engine.methods.reinforce import stages as reinforce
from engine.methods.reinforce.config import Reinforce
from engine.runtime.context import Stopped
from tests.methods.conftest import weights

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

EPISODES = {"environments": 3, "max_tokens": 72}
SMALL = {"iterations": 4, "epochs": 1, "checkpoint_every": 1, "lr": 0.01, "episodes": EPISODES}
VLLM = {"sampler": {"kind": "vllm", "memory": 64 << 20}}
LORA = {"r": 4, "alpha": 16, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


@pytest.mark.parametrize(("schema", "run", "lora"), [(PPO, ppo.train, LORA), (Reinforce, reinforce.train, None)])
def test_what_was_sampled_is_what_the_learner_would_have_said(stage, wider_dir, schema, run, lora):
    algorithm = schema.model_validate(SMALL).model_dump(mode="json")
    ctx = stage(algorithm, model=wider_dir, more={**VLLM, "lora": lora})

    run(ctx)

    # The first ratio between the learner's probability and the sampler's, before the update: 1, or its weights are old.
    assert [step for step, _ in ctx.curve("policy/ratio_error")] == [1, 2, 3, 4]
    assert max(error for _, error in ctx.curve("policy/ratio_error")) < 1e-3
    assert not torch.distributed.is_initialized()


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(stage, wider_dir):
    algorithm = Reinforce.model_validate({**SMALL, "iterations": 2}).model_dump(mode="json")
    whole, part, last = (
        stage(algorithm, name=name, model=wider_dir, more=VLLM) for name in ("whole", "parts", "parts")
    )
    reinforce.train(whole)
    part.request_stop()
    with pytest.raises(Stopped):
        reinforce.train(part)

    reinforce.train(last)

    assert weights(last.output_dir) == weights(whole.output_dir)


def test_archer_trains_and_its_contestants_share_an_engine(stage, wider_dir):
    algorithm = Archer.model_validate(
        {
            "iterations": 2,
            "episodes": {"environments": 2, "decisions": 2, "max_tokens": 72},
            "ranker": {"candidates": 2, "batch_size": 4, "updates": 2, "replay": {"capacity": 40, "min_fill": 8}},
            "generator": {"start_after": 0},
        }
    ).model_dump(mode="json")
    trained = stage(algorithm, model=wider_dir, more=VLLM)
    archer.train(trained)
    ctx = stage(algorithm, name="evaluate", model=wider_dir, more=VLLM, train=trained.output_dir)

    archer.evaluate(ctx)

    expected = {"final/untrained/score", "final/score", "final/score/generator"}
    assert {evaluation.metric for evaluation in ctx.evaluations} == expected
    assert not torch.distributed.is_initialized()


def test_an_engine_is_closed_by_a_stage_that_fails(stage, wider_dir):
    ctx = stage(PPO.model_validate(SMALL).model_dump(mode="json"), model=wider_dir, more=VLLM)

    def fails() -> None:
        with samplers(ctx) as sampler_of:
            sampler_of(load_policy(wider_dir))
            assert torch.distributed.is_initialized()
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()

    assert not torch.distributed.is_initialized()
