"""What a definition becomes on the command line, and the kinds that are ours, served for real."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from engine.errors import ModelError, ServiceDown
from engine.lm import scratch
from engine.lm.heads import new_head
from engine.lm.policy import LoraSettings, Policy, load_policy
from engine.lm.reference import Source
from engine.lm.reward_model import RewardModel
from engine.runtime.context import Address
from engine.runtime.service_kinds import environment, launch
from engine.runtime.services import Around, running
from engine.spec.services import VLLM, HTTPRetriever, Reward

KEY = "a-secret"


def vllm(place: Mapping[str, Any] | None = None, **more: Any) -> tuple[list[str], Any]:
    service = VLLM.model_validate({"kind": "vllm", "model": "org/name", **more}).model_dump(mode="json")
    planned = launch("reader", service, place or {}, port=1234, key=KEY)
    argv = planned.argv[planned.argv.index("serve") :]
    assert KEY not in " ".join(planned.argv)
    assert KEY not in repr(planned)
    assert environment(service, planned, port=1234, key=KEY, gpus="7")["VLLM_API_KEY"] == KEY
    return argv, planned


def after(argv: list[str], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_vllm_serves_a_hub_model() -> None:
    argv, planned = vllm()
    assert argv == ["serve", "org/name", "--host", "127.0.0.1", "--port", "1234", "--served-model-name", "org/name"]
    assert (planned.model, planned.base) == ("org/name", "/v1")


def test_vllm_in_all_its_settings() -> None:
    argv, _ = vllm(model="org/name@main", max_length=99, memory=0.5, dtype="bfloat16", gpus=2, args=("--seed", "1"))
    assert argv[1] == "org/name"
    told = {"--revision": "main", "--max-model-len": "99", "--gpu-memory-utilization": "0.5", "--dtype": "bfloat16"}
    assert {option: after(argv, option) for option in told} == told
    assert after(argv, "--tensor-parallel-size") == "2"
    assert argv[-2:] == ["--seed", "1"]
    own, _ = vllm(gpus=4, args=("--tensor-parallel-size", "2"))
    assert own.count("--tensor-parallel-size") == 1


def test_a_run_is_served_from_where_it_was_found() -> None:
    argv, planned = vllm({"model": {"path": "/runs/best/policy"}}, model="run:best-lang-1@best")
    assert argv[1] == "/runs/best/policy"
    assert planned.model == after(argv, "--served-model-name") == "run:best-lang-1@best"
    with pytest.raises(ModelError, match="not resolved"):
        vllm(model="run:best-lang-1@best")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    tokenizer = scratch.train_tokenizer(["the cat sat on the mat user assistant"] * 4, 280)
    torch.manual_seed(0)
    Policy(scratch.build("llama-nano", tokenizer, seed=3), tokenizer).save(tmp_path / "model")
    return tmp_path / "model"


def test_an_adapter_is_served_on_top_of_its_base(model_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(str(model_dir), lora=LoraSettings(r=24, alpha=8, target_modules=("q_proj",)))
    policy.save(tmp_path / "adapter")

    argv, planned = vllm({"model": {"path": str(tmp_path / "adapter")}}, model="run:tuned-1@best")

    assert argv[1] == str(model_dir)
    assert after(argv, "--lora-modules") == f"run:tuned-1@best={tmp_path / 'adapter'}"
    assert after(argv, "--served-model-name") != planned.model == "run:tuned-1@best"
    assert after(argv, "--max-lora-rank") == "32", "the next larger one that vLLM knows"

    on_top, named = vllm({"lora": {"path": str(tmp_path / "adapter")}}, model=str(model_dir), lora="run:tuned-1@best")
    assert (on_top[1], named.model) == (str(model_dir), "run:tuned-1@best")
    with pytest.raises(ModelError, match="is an adapter itself"):
        vllm(model=str(tmp_path / "adapter"), lora="org/other")


def post(address: Address, path: str, request: Any, key: str | None = None) -> tuple[int, Any]:
    connection = HTTPConnection(urlsplit(address.url).netloc, timeout=60)
    connection.request("POST", path, json.dumps(request), {"Authorization": f"Bearer {key or address.key}"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def test_a_reward_model_and_a_retriever_are_served(model_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(str(model_dir))
    head = new_head(str(model_dir), policy.tokenizer)
    with torch.no_grad():
        head.model.score.weight.normal_()  # type: ignore[union-attr,operator]
    head.save(tmp_path / "reward")
    (tmp_path / "c.jsonl").write_text('{"id": "a", "text": "the cat sat"}\n{"id": "b", "text": "dogs bark"}\n')
    judge = Reward(kind="reward", model=str(tmp_path / "reward"))
    wiki = HTTPRetriever.model_validate({"kind": "http-retriever", "corpus": {"file": str(tmp_path / "c.jsonl")}})
    both = {"judge": judge.model_dump(mode="json"), "wiki": wiki.model_dump(mode="json")}
    model = RewardModel(Source(str(tmp_path / "reward")), max_tokens=2048, batch_tokens=1000)
    texts = ["the cat", "the mat sat"]

    with running(both, {}, Around(lambda name: tmp_path / f"{name}.log"), threading.Event()) as services:
        status, scored = post(services["judge"], "/score", {"texts": texts})
        assert status == 200
        expected = model.score([model.of_text(text) for text in texts])
        assert scored["scores"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert services["judge"].model == str(tmp_path / "reward")

        status, found = post(services["wiki"], "/search", {"queries": ["a cat?"], "k": 3})
        assert status == 200
        assert [hit["id"] for hit in found["passages"][0]] == ["a"]

        assert post(services["judge"], "/score", {"texts": texts}, key="guess")[0] == 401
        assert post(services["wiki"], "/search", {"queries": 3})[0] == 400
        assert "listening on 127.0.0.1" in (tmp_path / "wiki.log").read_text()


def test_a_corpus_that_cannot_be_read_is_told_by_the_services_last_words(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("nonsense")
    wiki = HTTPRetriever.model_validate({"kind": "http-retriever", "corpus": {"file": str(tmp_path / "c.jsonl")}})
    around = Around(lambda name: tmp_path / f"{name}.log")
    with (
        pytest.raises(ServiceDown, match=r"service wiki ended with status 1 before(?s:.*)c\.jsonl:1: no JSON"),
        running({"wiki": wiki.model_dump(mode="json")}, {}, around, threading.Event()),
    ):
        raise AssertionError("the stage must not begin")
