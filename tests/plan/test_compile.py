"""A stage gets what it reads and no more; a field that nobody reads is an error, not a silent nothing."""

import json
from dataclasses import replace
from typing import Any, Literal

import pytest

from engine.errors import SpecError
from engine.plan.compile import compile_plan, pick
from engine.plan.hashing import cache_key
from engine.plan.stage import Needs, Resources, Stage
from engine.spec.base import SpecModel
from engine.spec.experiment import Experiment, experiment_type
from engine.spec.services import Reward


class Toy(SpecModel):
    name: Literal["toy"] = "toy"
    lr: float = 0.1
    beta: float = 0.5


def experiment(**more: Any) -> Experiment:
    raw = {
        "version": 1,
        "name": "toy_run",
        "seed": 7,
        "dataset": {"items": [{"prompt": "p", "answer": "a"}]},
        "algorithm": {"name": "toy"},
        "model": {"name": "org/model"},
        **more,
    }
    return experiment_type({"toy": Toy}).model_validate_json(json.dumps(raw))


def train(**more: Any) -> Stage:
    return Stage(name="train", kind="toy.train", run="m:f", reads=("algorithm.lr", "dataset", "model"), **more)


def test_a_stage_sees_the_parts_it_reads() -> None:
    plan = compile_plan(experiment(), [train()])

    config = plan.stage("train").config
    assert config["algorithm"] == {"lr": 0.1}
    assert config["dataset"]["items"][0]["prompt"] == "p"
    assert "evaluation" not in config
    assert (plan.name, plan.seed) == ("toy_run", 7)


def test_a_set_field_that_no_stage_reads_is_an_error() -> None:
    with pytest.raises(SpecError, match=r"algorithm\.beta is set, but no stage"):
        compile_plan(experiment(), [train()], {"algorithm.beta", "algorithm.lr", "seed", "hardware.gpus"})


def test_a_default_that_no_stage_reads_is_none_of_the_users_business() -> None:
    assert compile_plan(experiment(), [train()], {"algorithm.lr"}).stages


def test_hardware_reaches_every_stage_and_gives_way_to_the_stages_own() -> None:
    hardware = {"gpus": 2, "timeout": "2h", "stages": {"train": {"gpus": 8, "timeout": "30m"}}}
    evaluate = Stage(name="evaluate", kind="toy.evaluate", run="m:g", reads=("evaluation",), inputs={"train": "train"})

    plan = compile_plan(experiment(hardware=hardware), [train(), evaluate])

    assert plan.stage("train").resources == Resources(gpus=8, timeout_s=1800.0)
    assert plan.stage("evaluate").resources == Resources(gpus=2, timeout_s=7200.0)


def test_compiled_layers_are_resources_and_no_part_of_a_key() -> None:
    compiled, plain = (compile_plan(experiment(hardware={"compile": said}), [train()]) for said in (True, False))

    assert [plan.stage("train").resources.compile for plan in (compiled, plain)] == [True, False]
    assert cache_key(compiled.stages[0], 0, {}) == cache_key(plain.stages[0], 0, {})


def test_a_light_stage_gets_no_gpu_whatever_the_hardware() -> None:
    hardware = {"gpus": 2, "device": "cuda", "launcher": "torchrun", "timeout": "2h", "queue": "big"}
    light = replace(train(resources=Resources(light=True)), name="light")

    plan = compile_plan(experiment(hardware=hardware), [light, train(distributed=True)])

    resources = plan.stage("light").resources
    assert resources == Resources(device="cpu", timeout_s=7200.0, queue="big", light=True)
    assert resources.needs == Needs(slots=1)


def test_a_launcher_of_several_processes_is_for_the_stages_that_can_and_one_gpu_is_enough_for_the_others() -> None:
    hardware = {"gpus": 8, "launcher": "deepspeed", "zero": 3, "offload": "optimizer", "checkpoint_activations": True}
    evaluate = Stage(name="evaluate", kind="toy.evaluate", run="m:g", reads=("evaluation",), inputs={"train": "train"})

    plan = compile_plan(experiment(hardware=hardware), [train(distributed=True), evaluate])

    trains, evaluates = plan.stage("train").resources, plan.stage("evaluate").resources
    assert (trains.gpus, trains.launcher, trains.zero, trains.offload, trains.ranks) == (
        8,
        "deepspeed",
        3,
        "optimizer",
        8,
    )
    assert trains.checkpoint_activations
    assert evaluates == Resources(gpus=1, checkpoint_activations=True)
    assert evaluates.ranks == 1


def test_ranks_on_the_cpu_are_as_many_as_are_asked_for() -> None:
    plan = compile_plan(experiment(hardware={"launcher": "torchrun", "processes": 2}), [train(distributed=True)])

    assert plan.stage("train").resources.ranks == 2
    assert plan.stage("train").resources.needs == Needs(slots=1)


def test_each_node_has_what_is_asked_for_and_stages_of_one_process_have_one_node() -> None:
    hardware = {"gpus": 4, "launcher": "torchrun", "nodes": 3}
    evaluate = Stage(name="evaluate", kind="toy.evaluate", run="m:g", reads=("evaluation",), inputs={"train": "train"})

    plan = compile_plan(experiment(hardware=hardware), [train(distributed=True), evaluate])

    trains = plan.stage("train").resources
    assert (trains.nodes, trains.ranks, trains.node_ranks, trains.needs) == (3, 12, 4, Needs(1, 4))
    assert plan.stage("evaluate").resources == Resources(gpus=1)


def test_a_service_beside_a_stage_of_several_nodes_is_an_error() -> None:
    hardware = {"launcher": "torchrun", "processes": 1, "nodes": 2}
    beside = train(distributed=True, brings={"judge": Reward(kind="reward", model="org/name")})
    with pytest.raises(SpecError, match="needs the service 'judge', which its other nodes could not reach") as caught:
        compile_plan(experiment(hardware=hardware), [beside])
    assert [problem.path for problem in caught.value.problems] == ["hardware.nodes"]


@pytest.mark.parametrize(
    ("hardware", "path"),
    [
        ({"launcher": "torchrun", "gpus": 2}, "hardware.launcher"),
        ({"stages": {"train": {"launcher": "torchrun", "gpus": 2}}}, "hardware.stages.train.launcher"),
    ],
)
def test_a_launcher_of_several_processes_for_code_that_runs_in_one(hardware: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError, match="in one process") as caught:
        compile_plan(experiment(hardware=hardware), [train()])

    assert path in [problem.path for problem in caught.value.problems]


def test_how_long_a_stage_may_stand_still_is_a_matter_of_the_stage() -> None:
    hardware = {"stall_timeout": "10m", "stages": {"train": {"stall_timeout": None}}}
    evaluate = Stage(name="evaluate", kind="toy.evaluate", run="m:g", reads=("evaluation",), inputs={"train": "train"})

    plan = compile_plan(experiment(hardware=hardware), [train(), evaluate])

    assert plan.stage("train").resources.stall_timeout_s is None
    assert plan.stage("evaluate").resources.stall_timeout_s == 600.0
    assert compile_plan(experiment(), [train()]).stages[0].resources.stall_timeout_s == 1800.0


def test_a_stored_spec_gives_the_same_resources_when_it_is_read_back() -> None:
    first = experiment(hardware={"gpus": 2, "timeout": "2h", "stages": {"train": {"threads": 3}}})

    again = type(first).model_validate_json(json.dumps(first.model_dump(mode="json")))

    expected = Resources(gpus=2, timeout_s=7200.0, threads=3)
    assert compile_plan(first, [train()]).stages[0].resources == expected
    assert compile_plan(again, [train()]).stages[0].resources == expected


def test_hardware_for_a_stage_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"'trian'\. Did you mean 'train'"):
        compile_plan(experiment(hardware={"stages": {"trian": {"gpus": 1}}}), [train()])


def test_pick_takes_the_named_branches_and_skips_what_is_absent() -> None:
    tree = {"a": {"b": 1, "c": 2}, "d": 3}

    assert pick(tree, ("a.b", "d", "x.y")) == {"a": {"b": 1}, "d": 3}
