"""A model small enough to train in a test, a dataset to play with it, and a context to run stages in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from engine.functions.client import FunctionHost, open_functions
from engine.functions.sources import Sources
from engine.lm import scratch
from engine.lm.policy import Policy, load_policy
from engine.runtime.context import Stopped
from engine.runtime.local import LocalContext

SOURCES = Sources(
    split_fn="def split_fn(output):\n    return sum(o for o in map(ord, output) if o < 128) % 5 == 0",
    done_fn="def done_fn(text):\n    return sum(o for o in map(ord, text.split('assistant')[-1]) if o < 128) % 17 == 1",
    score_fn="def score_fn(text, answer):\n    return sum(o for o in map(ord, text) if o < 128) % 4 / 3",
)
"""Numbers of random text: utterances of a few tokens, episodes of a few utterances, scores 0, ⅓, ⅔ and 1."""
DATASET: Mapping[str, Any] = {
    "system_prompt": "",
    "main_prompt": "",
    "turn_cost": 0.0,
    "items": [{"prompt": "Say a word.", "answer": "x"}, {"prompt": "Say it again.", "answer": "y"}],
    "splits": {"heldout": [{"prompt": "Say more.", "answer": "z"}]},
}


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two narrow layers with a byte-level tokenizer, as a Hugging Face directory."""
    return random_model(tmp_path_factory.mktemp("model"), "llama-nano")


@pytest.fixture(scope="session")
def wider_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with heads that vLLM takes."""
    return random_model(tmp_path_factory.mktemp("wider"), "llama-micro")


def random_model(folder: Path, preset: str) -> Path:
    """A random model of the preset in a folder."""
    tokenizer = scratch.train_tokenizer(["Say a word. Say it again. Say more. user assistant"] * 4, 280)
    model = scratch.build(preset, tokenizer, seed=3)
    with torch.no_grad():  # less uniform than at initialisation, so that candidates and their values differ
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    Policy(model, tokenizer).save(folder)
    return folder


@pytest.fixture
def policy(model_dir: Path) -> Policy:
    """The model, loaded anew for each test."""
    return load_policy(str(model_dir))


@pytest.fixture(scope="session")
def functions() -> Iterator[FunctionHost]:
    """The dataset's functions in their own process."""
    with open_functions(SOURCES) as host:
        yield host


Stage = Callable[..., LocalContext]


@pytest.fixture
def stage(model_dir: Path, functions: FunctionHost, tmp_path: Path) -> Stage:
    """Makes contexts: `stage(algorithm, name="a")`; the same name twice shares its checkpoints; `more` of the model."""
    made = 0

    def make(
        algorithm: Mapping[str, Any],
        *,
        name: str = "train",
        every: int = 2,
        dataset: Mapping[str, Any] = DATASET,
        more: Mapping[str, Any] = MappingProxyType({}),
        **inputs: Path,
    ) -> LocalContext:
        nonlocal made
        made += 1
        config = {
            "dataset": dataset,
            "algorithm": algorithm,
            "model": {"lora": None, **more},
            "evaluation": {"every": every, "runs_per_item": 2, "splits": None},
        }
        return LocalContext(
            config,
            11,
            tmp_path / f"{name}-{made}",
            inputs={"model": model_dir, **inputs},
            functions=functions,
            checkpoint_dir=tmp_path / f"{name}.checkpoints",
        )

    return make


def weights(folder: Path) -> list[str]:
    """SHA-256 of every file of weights below a folder."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.safetensors"))]


def whole_and_in_parts(
    stage: Stage, run: Callable[[LocalContext], None], algorithm: Mapping[str, Any], **more: Any
) -> tuple[LocalContext, LocalContext]:
    """A training stage carried out at one go, and once more that was stopped three times on its way."""
    whole = stage(algorithm, name="whole", **more)
    run(whole)
    part = stage(algorithm, name="parts", **more)
    part.request_stop()
    for _ in range(3):
        with pytest.raises(Stopped):
            run(part)
    last = stage(algorithm, name="parts", **more)
    run(last)
    return whole, last
