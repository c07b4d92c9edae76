"""Which services a stage gets, what they cost in GPUs, and what of them its cache key covers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import pytest

from engine.errors import SpecError
from engine.plan.compile import compile_plan
from engine.plan.hashing import cache_key
from engine.plan.stage import Needs, Stage
from engine.spec.base import SpecModel
from engine.spec.experiment import Experiment, experiment_type
from engine.spec.services import Command


class Toy(SpecModel):
    name: Literal["toy"] = "toy"


READER = {"kind": "vllm", "model": "org/reader", "gpus": 2}
TRAIN = Stage(name="train", kind="toy.train", run="m:f", reads=("model",), services=("reader",))
EVALUATE = Stage(name="evaluate", kind="toy.evaluate", run="m:g", reads=("model",), inputs={"train": "train"})


def experiment(services: dict[str, Any], **more: Any) -> Experiment:
    raw = {
        "version": 1,
        "name": "toy_run",
        "dataset": {"items": [{"prompt": "p", "answer": "a"}]},
        "algorithm": {"name": "toy"},
        "model": {"name": "org/model"},
        "services": services,
        **more,
    }
    return experiment_type({"toy": Toy}).model_validate_json(json.dumps(raw))


def key(stage: Stage = TRAIN, **changes: Any) -> str:
    plan = compile_plan(experiment({"reader": READER | changes}), [stage])
    return cache_key(plan.stages[0], 0, {})


def test_a_stage_is_told_of_its_services_and_no_others() -> None:
    plan = compile_plan(experiment({"reader": READER}), [TRAIN, EVALUATE])

    assert list(plan.stage("train").config["services"]) == ["reader"]
    assert plan.stage("train").config["services"]["reader"]["model"] == "org/reader"
    assert "services" not in plan.stage("evaluate").config


@pytest.mark.parametrize(
    ("hardware", "total"),
    [({"gpus": 1}, 3), ({}, 2), ({"device": "cuda"}, 3), ({"stages": {"train": {"gpus": 4}}}, 6)],
)
def test_a_lease_holds_the_stages_gpus_and_those_of_its_services(hardware: dict[str, Any], total: int) -> None:
    plan = compile_plan(experiment({"reader": READER}, hardware=hardware), [TRAIN, EVALUATE])

    assert plan.stage("train").resources.needs == Needs(1, total)
    own = max(hardware.get("gpus", 0), 1 if hardware.get("device") == "cuda" else 0)
    assert plan.stage("evaluate").resources.needs == Needs(1, own)


def test_a_planner_may_bring_a_service_of_its_own() -> None:
    brought = Command(kind="command", argv=("serve", "{port}"), gpus=1)
    stage = replace(TRAIN, services=(), brings={"own": brought})

    (compiled,) = compile_plan(experiment({}), [stage]).stages

    assert compiled.config["services"]["own"]["argv"] == ["serve", "{port}"]
    assert compiled.resources.needs.gpus == 1


def test_a_service_that_nobody_declared_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"stage train needs a service: .*'reader'. Did you mean 'readers'?"):
        compile_plan(experiment({"readers": READER}), [TRAIN])
    with pytest.raises(SpecError, match=r"no service is called 'reader': declare it under `services`"):
        compile_plan(experiment({}), [TRAIN])


def test_a_service_that_nobody_needs_is_an_error() -> None:
    with pytest.raises(SpecError, match="no stage of this plan uses the service 'spare'") as caught:
        compile_plan(experiment({"reader": READER, "spare": READER}), [TRAIN], {"services.spare.kind"})
    assert [problem.path for problem in caught.value.problems] == ["services.spare"]


@pytest.mark.parametrize(
    "change", [{"model": "org/other"}, {"max_length": 9}, {"dtype": "float16"}, {"args": ["-x"]}, {"env": {"A": "b"}}]
)
def test_what_is_served_is_part_of_the_key(change: dict[str, Any]) -> None:
    assert key(**change) != key()


@pytest.mark.parametrize("change", [{"gpus": 0}, {"keep": "5m"}, {"start_timeout": "1h"}, {"memory": 0.5}])
def test_how_it_runs_is_not(change: dict[str, Any]) -> None:
    assert key(**change) == key()


API = {"kind": "endpoint", "url": "https://a/v1", "model": "m", "key": "${env:KEY}"}


def hosted_key(**changes: Any) -> str:
    (stage,) = compile_plan(experiment({"reader": API | changes}), [TRAIN]).stages
    return cache_key(stage, 0, {})


@pytest.mark.parametrize("change", [{"url": "https://b/v1"}, {"model": "n"}, {"token_ids": False}, {"version": "2"}])
def test_who_answers_at_an_endpoint_is_part_of_the_key(change: dict[str, Any]) -> None:
    assert hosted_key(**change) != hosted_key()


def test_how_an_endpoint_is_asked_is_not() -> None:
    terms = {"key": "${env:OTHER}", "retries": 1, "budget": 9.0, "price_in": 1.0, "timeout": 5, "health": "/up"}
    assert hosted_key(**terms) == hosted_key()


def test_a_hosted_service_takes_the_place_of_a_started_one_and_needs_no_gpu() -> None:
    (stage,) = compile_plan(experiment({"reader": API}, hardware={"gpus": 1}), [TRAIN]).stages
    assert stage.resources.needs == Needs(1, 1)
    assert stage.config["services"]["reader"]["key"] == "${env:KEY}"


def test_a_stage_without_services_has_the_key_that_it_had() -> None:
    alone = replace(TRAIN, services=())
    before = cache_key(compile_plan(experiment({}), [alone]).stages[0], 0, {})
    assert before != key()
    assert "services" not in compile_plan(experiment({}), [alone]).stages[0].config
