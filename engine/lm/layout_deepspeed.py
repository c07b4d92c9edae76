"""The layout of DeepSpeed: ZeRO shards optimiser states, gradients and weights over the ranks (Rajbhandari et al.,
2020), and may let them rest in main memory.

DeepSpeed wants to know a step's whole weight before the first backward pass. Weights and moments leave it whole, by
its own functions for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.errors import SpecError
from engine.lm.layout import Adam, Moments, Within, gathered, layers_of, trainable
from engine.plan.stage import Resources

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroLayout:
    """See `engine.lm.layout.Layout`."""

    def __init__(self, module: nn.Module, adam: Adam, precision: torch.dtype, resources: Resources) -> None:
        deepspeed = _deepspeed()
        self._together = deepspeed.zero.GatheredParameters
        """Weights whole, within a block; those that lie whole already stay as they are."""
        self._stage, self._ranks = resources.zero, resources.ranks
        self.named: Mapping[str, nn.Parameter] = trainable(module)
        self._within = Within(module)
        if self._stage == 3:
            layers = layers_of(module)
            deepspeed.utils.set_z3_leaf_modules(module, sorted({type(layer) for layer in layers}, key=repr))
            for part in module.modules():
                # DeepSpeed lets a layer's weights go before its backward pass where nothing below it wants a gradient.
                if isinstance(part, PreTrainedModel) and not part.get_input_embeddings().weight.requires_grad:
                    part.enable_input_require_grads()
            inside = {id(p) for layer in layers for p in layer.parameters()}
            for parameter in module.parameters():
                if id(parameter) not in inside:  # read by the loss itself, or in the model's own forward
                    deepspeed.zero.register_external_parameter(self._within, parameter)
        optimiser = torch.optim.AdamW(
            self.named.values(), lr=0.0, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay
        )
        self._engine, *_ = deepspeed.initialize(
            model=self._within,
            optimizer=optimiser,
            config=settings(resources, precision, adam.clip_norm),
            dist_init_required=False,
        )
        self._stepped = False

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()  # the weights themselves are in the run's precision

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._engine(function, *args)

    def backward(self, loss: Tensor, *, total: float | None, last: bool) -> None:
        if total is None:
            raise SpecError(
                "hardware.launcher: deepspeed needs losses whose weight is known beforehand; write torchrun"
            )
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * (self._ranks / total))  # it averages over the ranks

    def step(self, rate: float, total: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()
        self._stepped = True
        return float(self._engine.get_global_grad_norm())

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        return {name: safe_get_full_fp32_param(parameter).detach().clone() for name, parameter in self.named.items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._stepped:
            return {}
        count = next(float(entry["step"]) for entry in self._inner.state.values() if "step" in entry)
        return {
            name: {
                "step": torch.tensor(count),
                **{key: safe_get_full_optimizer_state(parameter, key).detach().clone() for key in _MOMENTS},
            }
            for name, parameter in self.named.items()
        }

    def load(self, weights: Mapping[str, Tensor], moments: Moments) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if moments:
            self._lay_moments(float(next(iter(moments.values()))["step"]))
        for name, parameter in self.named.items():
            self._write(parameter, weights[name])
            safe_set_full_fp32_param(parameter, weights[name])
            for key in _MOMENTS if moments else ():
                safe_set_full_optimizer_state(parameter, moments[name][key], key)

    def shown(self) -> list[Tensor]:
        return [getattr(parameter, "ds_tensor", parameter).detach() for parameter in self.named.values()]

    def everything(self, model: nn.Module) -> dict[str, Tensor] | None:
        if self._stage < 3:
            return None

        def whole(tensor: Tensor) -> Tensor:
            with self._together([tensor]):
                return tensor.detach().clone()

        return gathered(model, whole)

    @property
    def scaling(self) -> list[float] | None:
        """The loss scale and the steps that it has held."""
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if scaler is None or not getattr(scaler, "dynamic", False):
            return None
        return [float(scaler.cur_scale), float(scaler.cur_iter - scaler.last_overflow_iter)]

    @scaling.setter
    def scaling(self, scaling: list[float] | None) -> None:
        if scaling is not None:
            scaler = self._engine.optimizer.loss_scaler
            scaler.cur_scale = scaling[0]
            scaler.last_overflow_iter = scaler.cur_iter - int(scaling[1])

    @property
    def _inner(self) -> Any:
        """The optimiser that DeepSpeed steps, on flat copies of its own."""
        return self._engine.optimizer.optimizer

    def _write(self, parameter: nn.Parameter, weight: Tensor) -> None:
        """Set what the next forward pass reads: DeepSpeed has it follow its own copy after a step only."""
        with torch.no_grad(), self._together([parameter], modifier_rank=0):
            parameter.copy_(weight)

    def _lay_moments(self, count: float) -> None:
        """Make the moments that DeepSpeed makes in its first step, as after `count` steps."""
        zero = self._engine.optimizer
        for flat in zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups:
            self._inner.state[flat] = {
                "step": torch.tensor(count),
                **{key: torch.zeros_like(flat, requires_grad=False) for key in _MOMENTS},
            }
        if self._stage < 3:
            zero._lazy_init_hp_params_optimizer_state()
        self._stepped = True


def settings(resources: Resources, precision: torch.dtype, clip_norm: float | None) -> dict[str, Any]:
    """DeepSpeed's configuration."""
    memory = {"device": "cpu", "pin_memory": bool(resources.gpus)}
    zero: dict[str, Any] = {"stage": resources.zero}
    if resources.offload != "none":
        zero["offload_optimizer"] = memory
    if resources.offload == "all":
        zero["offload_param"] = memory
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == torch.bfloat16},
        "fp16": {"enabled": precision == torch.float16},
    }


def _deepspeed() -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # it tells every rank's every setting
    try:
        import deepspeed
    except ImportError as error:
        raise SpecError(
            "hardware.launcher: deepspeed needs the package: pip install 'rlx[deepspeed]' where the worker runs"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # On a CPU it would compile this, for a minute or two, to reduce faster in inference; training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
