"""A tiny twin has the real model's architecture, and is the same each time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import ModelError
from engine.lm.heads import new_head
from engine.lm.hf import HFSampler
from engine.lm.noise import NoiseKey
from engine.lm.packing import pack
from engine.lm.policy import LoraSettings, load_policy
from engine.lm.sampler import SamplingParams
from engine.lm.tiny import FAMILIES, build, family

ADAPTED = {"phi3": ("qkv_proj",), "olmo2": ("q_proj",)}
"""For families of which PEFT does not know what to adapt."""
TEXTS = ["Create a list of 3 compiled programming languages."]


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", "llama"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2"),
        ("Qwen/Qwen3-0.6B", "qwen3"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "mistral"),
        ("google/gemma-2-9b-it", "gemma2"),
        ("facebook/opt-1.3b", "opt"),
        ("gpt2", "gpt2"),
    ],
)
def test_it_is_of_the_models_family_and_loads_like_any_model(name: str, architecture: str, tmp_path: Path) -> None:
    build(name, TEXTS, seed=0).save(tmp_path)

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.config.model_type == architecture == family(name)
    assert sum(p.numel() for p in model.parameters()) < 200_000


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (build("gpt2", TEXTS, seed=seed).model.state_dict() for seed in (1, 1, 2))

    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_directory_tells_its_family_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')

    assert family(str(tmp_path)) == "qwen3"


def test_a_name_that_tells_nothing_is_refused_with_the_families_there_are() -> None:
    with pytest.raises(ModelError, match=r"org/secret.*llama"):
        family("org/secret")


@pytest.mark.parametrize("name", sorted({name for name, _ in FAMILIES}))
def test_every_familys_twin_samples_and_carries_adapters_and_a_head(name: str, tmp_path: Path) -> None:
    build(name, TEXTS, seed=0).save(tmp_path)
    policy = load_policy(tmp_path)
    packed = pack([[1, 2, 3]], [[[4, 5], [6]]], want=("last",))

    groups = HFSampler(policy).generate([[1, 2, 3], [4]], 2, SamplingParams(4), None, [NoiseKey(0), NoiseKey(1)])

    assert all(len(completion.token_ids) == 4 for group in groups for completion in group)
    assert not new_head(tmp_path, policy.tokenizer)(packed).any()
    adapted = load_policy(tmp_path, lora=LoraSettings(target_modules=ADAPTED.get(family(name))))
    assert 0 < sum(p.numel() for p in adapted.parameters()) < sum(p.numel() for p in policy.parameters())
