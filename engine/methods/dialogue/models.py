"""What a stage loads: the models that an earlier stage left, in the precision and on the device it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.data.splits import split_items
from engine.errors import DataError, SpecError
from engine.lm.heads import ScalarHead, new_head
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import DTYPES, LoraSettings, Policy, load_policy
from engine.lm.reference import Source
from engine.lm.sampler import Sampler
from engine.lm.warmup import source_of
from engine.methods.dialogue.environment import Game, Item
from engine.methods.dialogue.play import Speaker
from engine.runtime.context import StageContext


class Loader:
    """Loads policies and critics of one run, all on the trunk that its model names."""

    def __init__(self, ctx: StageContext) -> None:
        self._device, self._trace = ctx.device, ctx.trace
        self._resources, self._world = ctx.resources, ctx.world
        self.source: Source = source_of(ctx.inputs["model"])
        lora = ctx.config["model"].get("lora")
        self.lora = None if lora is None else _lora(lora)
        self._numbers = number_format(ctx.config.get("hardware", {}).get("precision", "auto"), ctx.device)

    def policy(self, source: Source | None = None) -> Policy:
        """The policy, trainable."""
        return load_policy(source or self.source, device=self._device, dtype=self.dtype, lora=self.lora)

    def saved_policy(self, folder: Path) -> Policy:
        """A policy that training left in `folder`."""
        return load_policy(Source(str(folder)), device=self._device, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of loaded weights: the run's precision below adapters; whatever is trained in full stays in float32."""
        return torch.float32 if self.lora is None else self._numbers

    def learner(self, module: torch.nn.Module, *, lr: float, grad_clip: float | None, beta2: float = 0.999) -> Learner:
        """Adam on everything trainable in `module`, its forward passes in the run's precision."""
        return self.learner_of(module, LearnerSettings(lr=lr, betas=(0.9, beta2), clip_norm=grad_clip))

    def learner_of(self, module: torch.nn.Module, settings: LearnerSettings) -> Learner:
        """The same, in all its settings."""
        return Learner(
            module,
            settings,
            precision=self._numbers if self.lora is None else torch.float32,
            trace=self._trace,
            resources=self._resources,
            world=self._world,
        )

    def head(self, tokenizer: Any, *, outputs: int = 1) -> ScalarHead:
        """A new critic or value network on a copy of the same trunk."""
        return new_head(self.source, tokenizer, outputs=outputs, device=self._device, dtype=self.dtype, lora=self.lora)

    @property
    def fresh_adapters(self) -> bool:
        """Whether switching adapters off gives back the model that training started from."""
        return self.lora is not None and not self.source.is_adapter()


def number_format(precision: str, device: str) -> torch.dtype:
    """What `hardware.precision` means on a device. Raises SpecError for float16, which would need loss scaling."""
    if precision == "float16":
        raise SpecError("hardware.precision: float16 needs loss scaling, which rlx does not do: write bfloat16")
    if precision == "auto":
        precision = "bfloat16" if device.startswith("cuda") else "float32"
    return DTYPES[precision]


def games(ctx: StageContext, policy: Policy, names: Sequence[str] | None = None) -> dict[str, Game]:
    """A game for each of the dataset's splits (or the named ones), `train` first."""
    dataset, episodes = ctx.config["dataset"], ctx.config["algorithm"]["episodes"]
    splits = split_items(dataset)
    if names is not None and (unknown := [name for name in names if name not in splits]):
        raise SpecError(f"evaluation.splits: the dataset has no split {unknown[0]!r}, only {', '.join(splits)}")
    for name, items in splits.items():
        if (written := next((n for n, item in enumerate(items, 1) if item.messages is not None), None)) is not None:
            raise DataError(f"{name}:{written}: a game begins with a `prompt`, and this item is a written conversation")
    main = dataset["main_prompt"]
    eos = policy.tokenizer.eos_token_id
    return {
        name: Game(
            [Item(f"{main}\n{item.prompt}" if main else item.prompt, item.answer) for item in items],
            chat=policy,
            functions=ctx.functions,
            system=dataset["system_prompt"],
            eos=() if eos is None else (eos,),
            max_tokens=episodes["max_tokens"],
            max_turns=episodes["max_turns"],
            turn_cost=dataset["turn_cost"],
            trace=ctx.trace,
        )
        for name, items in splits.items()
        if names is None or name in names or name == "train"
    }


def speakers(sampler: Sampler, games_by_split: Mapping[str, Game]) -> dict[str, Speaker]:
    """The policy as a speaker in each game, with one sampler for all."""
    return {name: Speaker(sampler, game) for name, game in games_by_split.items()}


def _lora(data: Mapping[str, Any]) -> LoraSettings:
    modules = data.get("target_modules")
    return LoraSettings(
        r=data["r"],
        alpha=data["alpha"],
        dropout=data["dropout"],
        target_modules=tuple(modules) if modules else None,
    )
