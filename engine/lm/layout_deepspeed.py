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

from engine.errors import SpecError
from engine.lm.layout import Adam, Moments, Within, gathered, layers_of, trainable
from engine.plan.stage import Resources

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroLayout:
    """See `engine.lm.layout.Layout`."""

    def __init__(self, module: nn.Module, adam: Adam, precision: torch.dtype, resources: Resources) -> None:
        deepspeed = _deepspeed()
        self._stage, self._ranks = resources.zero, resources.ranks
        self.named: Mapping[str, nn.Parameter] = trainable(module)
        self._within = Within(module)
        if self._stage == 3:
            layers = layers_of(module)
            deepspeed.utils.set_z3_leaf_modules(module, sorted({type(layer) for layer in layers}, key=repr))
            inside = {id(p) for layer in layers for p in layer.parameters()}
            for parameter in module.parameters():
                if id(parameter) not in inside:  # read by the loss itself, or in the model's own forward
                    deepspeed.zero.register_external_parameter(self._within, parameter)
        # The rate is set before every step; at 0 the step on nothing that DeepSpeed begins with changes nothing.
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
        self._set_count(0.0)

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

        for name, parameter in self.named.items():
            safe_set_full_fp32_param(parameter, weights[name])
            for key in _MOMENTS if moments else ():
                safe_set_full_optimizer_state(parameter, moments[name][key], key)
        if moments:
            self._set_count(float(next(iter(moments.values()))["step"]))
            self._stepped = True

    def shown(self) -> list[Tensor]:
        return [getattr(parameter, "ds_tensor", parameter).detach() for parameter in self.named.values()]

    def everything(self, model: nn.Module) -> dict[str, Tensor] | None:
        if self._stage < 3:
            return None
        together = _deepspeed().zero.GatheredParameters

        def whole(tensor: Tensor) -> Tensor:
            if not hasattr(tensor, "ds_id"):
                return tensor
            with together([tensor]):
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
        """The optimiser that DeepSpeed steps, on its own flat copies."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    def _set_count(self, count: float) -> None:
        """How many steps its Adam has taken: DeepSpeed's beginning counts as one, which would bias the first."""
        for entry in self._inner.state.values():
            if "step" in entry:
                entry["step"] = torch.full_like(torch.as_tensor(entry["step"], dtype=torch.float32), count)


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
    return deepspeed
