"""The last stage: the best checkpoint and the untrained model, on episodes whose luck training never saw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.lm.policy import Policy
from engine.methods.dialogue.evaluation import evaluate as play
from engine.methods.dialogue.models import Loader, games, speakers
from engine.methods.dialogue.play import Costs, Valuer
from engine.methods.dialogue.sampling import samplers
from engine.runtime.context import StageContext
from engine.runtime.seeds import derive

MORE = 2
"""Times as many runs of each item as during training."""


@dataclass(frozen=True)
class Contestant:
    """A policy with its ranker, if it has one, under the name of a metric."""

    metric: str
    step: int
    policy: Policy
    candidates: int
    valuer: Valuer | None


def evaluate_all(ctx: StageContext, contestants: Sequence[Contestant]) -> None:
    """Evaluate each on every split, under the same luck; also writes `scores.json` as the stage's artifact."""
    asked = int(ctx.config["evaluation"]["runs_per_item"])
    runs = asked if "checkpoint" in ctx.extra else MORE * asked
    table: dict[str, dict[str, float]] = {}
    with samplers(ctx) as sampler_of:
        for number, contestant in enumerate(contestants):
            ctx.trace.step = number
            for split, speaker in speakers(sampler_of(contestant.policy), games(ctx, contestant.policy)).items():
                played = play(
                    speaker,
                    split,
                    runs=runs,
                    candidates=contestant.candidates,
                    valuer=contestant.valuer,
                    seed=derive(ctx.seed, "final", split),
                )
                metric = f"final/{contestant.metric}"
                ctx.evaluation(played.evaluation(contestant.step, metric, ctx.functions.hash, Costs()))
                ctx.sample(*played.samples(contestant.step, kind=metric, per_item=8))
                table.setdefault(contestant.metric, {})[split] = played.mean
            ctx.progress(number + 1, len(contestants), contestant.metric)
    (ctx.output_dir / "scores.json").write_text(json.dumps(table, indent=1), encoding="utf-8")


def trained_models(ctx: StageContext) -> tuple[Path, int]:
    """Where the trained models stand, and the step to record: the best of training, or the checkpoint of `rlx eval`."""
    given = ctx.extra.get("checkpoint")
    if given is not None:
        return Path(given["path"]), int(given["step"])
    return ctx.inputs["train"] / "best", int(ctx.config["algorithm"]["iterations"])


def evaluate(ctx: StageContext) -> None:
    """The stage for methods without a ranker."""
    folder, step = trained_models(ctx)
    loader = Loader(ctx)
    trained = loader.saved_policy(folder / "generator")
    evaluate_all(
        ctx,
        [
            Contestant("untrained/score", 0, loader.policy(), 1, None),
            Contestant("score", step, trained, 1, None),
        ],
    )
