"""SFT's heavy stages: the model, its training, and how much better it became."""

from __future__ import annotations

import json
from pathlib import Path

from engine.lm import chat, scratch, warmup
from engine.lm.learner import LearnerSettings
from engine.methods.dialogue.final import Contestant, evaluate_all
from engine.methods.dialogue.models import Loader, games
from engine.methods.dialogue.prepare import training_tasks
from engine.methods.sft.config import SFT
from engine.methods.sft.examples import conversations, examples
from engine.methods.sft.trainer import METRIC, STEPS, Trainer, evaluated
from engine.runtime.context import StageContext


def prepare(ctx: StageContext) -> None:
    """Make or resolve the model of the spec; a scratch model's tokenizer knows the conversations."""
    train, *_ = conversations(ctx.config["dataset"]).values()
    draft = scratch.train_tokenizer([], 0)  # knows the chat template, which is all that rendering needs
    texts = ["".join(text for text, _ in chat.written(draft, messages)) for messages in train]
    warmup.prepare(ctx, training_tasks(ctx.config["dataset"]), texts=texts)


def train(ctx: StageContext) -> None:
    """Train the policy; leaves `best/` and `latest/`, each with a `policy` directory."""
    config = SFT.model_validate(ctx.config["algorithm"])
    loader = Loader(ctx)
    policy = loader.policy()
    if ctx.config["dataset"].get("score_fn"):
        games(ctx, policy)  # what cannot be scored in the end is told now
    written = conversations(ctx.config["dataset"])
    wanted = ctx.config["evaluation"].get("splits")
    splits = {
        name: examples(
            policy.tokenizer,
            found,
            everything=config.learn == "everything",
            longest=config.max_tokens,
            split=name,
        )
        for name, found in written.items()
        if wanted is None or name in wanted or name in ("train", config.best_by)
    }
    steps = Trainer.steps(sum(example is not None for example in splits["train"]) or 1, config)
    settings = LearnerSettings(
        lr=config.lr,
        weight_decay=config.weight_decay,
        clip_norm=config.grad_clip,
        schedule=config.schedule,
        warmup_steps=int(config.warmup * steps),
        total_steps=steps,
    )
    Trainer(ctx, config, policy, loader.learner_of(policy.model, settings), splits).run()


def evaluate(ctx: StageContext) -> None:
    """The trained and the untrained model on every split: log-probabilities, and scores where there is a `score_fn`."""
    config = SFT.model_validate(ctx.config["algorithm"])
    if (given := ctx.extra.get("checkpoint")) is not None:
        folder, step = Path(given["path"]), int(given["step"])
    else:
        folder, steps = ctx.inputs["train"] / "best", json.loads((ctx.inputs["train"] / STEPS).read_text())
        step = int(steps["best"])
    loader = Loader(ctx)
    models = [("untrained/", 0, loader.policy()), ("", step, loader.saved_policy(folder / "policy"))]
    table: dict[str, dict[str, float]] = {}
    for before, at, policy in models:
        for split, found in conversations(ctx.config["dataset"]).items():
            known = examples(
                policy.tokenizer,
                found,
                everything=config.learn == "everything",
                longest=config.max_tokens,
                split=split,
            )
            evaluation = evaluated(policy, known, split, at, config.batch_tokens, {}, metric=f"final/{before}{METRIC}")
            ctx.evaluation(evaluation)
            mean = sum(item.scores[0] for item in evaluation.items) / len(evaluation.items)
            table.setdefault(f"{before}{METRIC}", {})[split] = mean
    (ctx.output_dir / "logps.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    if ctx.config["dataset"].get("score_fn"):
        evaluate_all(ctx, [Contestant(f"{before}score", at, policy, 1, None) for before, at, policy in models])
