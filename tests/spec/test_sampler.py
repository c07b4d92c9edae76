"""`model.sampler`: a word or a block; only options that do something; and a key that only what samples reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.errors import SpecError
from engine.methods.registry import configs, plan
from engine.methods.tiny import twin
from engine.plan.hashing import sha256_of
from engine.plan.stage import Stage
from engine.spec.load import load
from engine.spec.model import Model
from engine.spec.sampler import Sampler

SPECS = Path(__file__).resolve().parents[2] / "specs"


def stages(spec: str, *overrides: str) -> dict[str, Stage]:
    loaded = load(SPECS / spec, overrides, methods=configs())
    return {stage.name: stage for stage in plan(loaded.experiment, loaded.set_paths).stages}


def test_a_word_stands_for_its_block():
    word, block = (Model.model_validate({"name": "a/b", "sampler": said}) for said in ("vllm", {"kind": "vllm"}))

    assert word.sampler == block.sampler == Sampler(kind="vllm")
    assert Model(name="a/b").sampler == Sampler(kind="hf")


def test_a_block_survives_being_stored():
    said = {"kind": "vllm", "memory": "8GiB", "max_sequences": 64, "prefix_caching": False, "precision": "bfloat16"}
    model = Model.model_validate({"name": "a/b", "sampler": said})

    again = Model.model_validate_json(model.model_dump_json())

    assert again == model
    assert again.sampler.memory == 8 << 30


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("vlm", "'hf' or 'vllm'"),
        ({"kind": "hf", "memory": "1GiB"}, "memory is an option of vLLM"),
        ({"max_sequences": 4}, "max_sequences is an option of vLLM"),
        ({"kind": "vllm", "memory": 0}, "can say nothing"),
        ({"kind": "vllm", "memroy": "1GiB"}, "memroy"),
        ({"kind": "vllm", "max_sequences": 0}, "greater than or equal to 1"),
    ],
)
def test_options_that_do_nothing_are_refused(said, words):
    with pytest.raises(ValidationError, match=words):
        Model.model_validate({"name": "a/b", "sampler": said})


def test_the_default_is_not_written_down_so_that_what_was_cached_stays_cached():
    before = stages("best_lang.yaml")

    said = stages("best_lang.yaml", "model.sampler=hf")

    assert "sampler" not in Model(name="a/b").model_dump()
    assert {name: sha256_of(stage.config) for name, stage in said.items()} == {
        name: sha256_of(stage.config) for name, stage in before.items()
    }


def test_only_stages_that_complete_prompts_read_it():
    before, after = stages("best_lang.yaml"), stages("best_lang.yaml", "model.sampler=vllm")

    changed = {name for name in before if before[name].config != after[name].config}

    assert changed == {"train", "evaluate"}
    assert after["train"].config["model"]["sampler"]["kind"] == "vllm"


def test_every_other_part_of_a_model_is_read_by_all_stages():
    parts = set(Model.model_fields) - {"sampler"}

    for stage in stages("best_lang.yaml").values():
        assert {path.removeprefix("model.") for path in stage.reads if path.startswith("model.")} - {"sampler"} == parts


def test_where_nothing_is_sampled_the_key_is_an_error(tmp_path):
    rewards = [path.name for path in SPECS.glob("*.yaml") if "name: reward" in path.read_text(encoding="utf-8")]
    assert rewards
    for name in rewards:
        with pytest.raises(SpecError, match="no stage of this plan reads it"):
            stages(name, "model.sampler=vllm")


def test_the_tiny_twin_samples_by_itself():
    loaded = load(SPECS / "best_lang.yaml", ["model.sampler=vllm"], methods=configs())

    assert twin(loaded).experiment.model.sampler == Sampler()
