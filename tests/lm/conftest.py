"""Policies of every family, with weights large enough that their distributions are not flat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.lm.policy import LoraSettings, Policy
from engine.lm.scratch import train_tokenizer
from tests.lm.families import LEAN, OTHER, TEXT, ScriptedStops


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return train_tokenizer([TEXT] * 4, 330)


@pytest.fixture
def make_policy(tokenizer: Any) -> Callable[..., Policy]:
    """`make_policy(family, lora=False)`: a seeded random policy of the family."""

    def make(family: str = "llama", *, lora: bool = False, seed: int = 0) -> Policy:
        torch.manual_seed(seed)
        model = {**LEAN, **OTHER}[family](len(tokenizer))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 2:
                    parameter.mul_(5.0)
                elif name.endswith("bias"):
                    parameter.normal_(std=0.3)
                else:
                    parameter.add_(torch.randn_like(parameter), alpha=0.2)
        if lora:
            from peft import TaskType, get_peft_model

            settings = LoraSettings(r=4, alpha=8, target_modules=("q_proj", "v_proj", "down_proj"))
            model = get_peft_model(model, settings.peft_config(TaskType.CAUSAL_LM))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(std=0.2)
        return Policy(model.eval(), tokenizer)

    return make


@pytest.fixture
def saved(make_policy: Callable[..., Policy], tmp_path: Path) -> Path:
    """A directory with a saved llama policy."""
    folder = tmp_path / "model"
    make_policy("llama").save(folder)
    return folder


@pytest.fixture
def stops() -> ScriptedStops:
    return ScriptedStops()
