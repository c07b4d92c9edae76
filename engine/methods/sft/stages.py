"""SFT's heavy stages: the model, its training, and how much better it became."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from engine.errors import DataError
from engine.functions.sources import is_scored
from engine.lm import chat, scratch, warmup
from engine.lm.policy import Policy
from engine.lm.shares import HERE, Across
from engine.lm.supervised import Example, batch_loss, collate, mean_logps, quick_order
from engine.methods.dialogue.final import Contestant, evaluate_all
from engine.methods.dialogue.models import Loader, games
from engine.methods.dialogue.prepare import training_tasks
from engine.methods.sft.config import SFT, Data
from engine.methods.sft.examples import Messages, answered, conversations, examples, written_texts
from engine.methods.supervised.course import Course, Schedule, Work, settings, trained, wanted_splits, write_means
from engine.runtime.context import Evaluation, ItemScore, StageContext
from engine.spec.dataset import TRAIN

METRIC = "logp"
"""Mean log-probability of an item's learnt tokens, in nats: 0 at most, higher is better."""
Splits = Mapping[str, Sequence[Example | None]]


def prepare(ctx: StageContext) -> None:
    """Make or resolve the model of the spec; a scratch model's tokenizer knows the conversations."""
    dataset, data = ctx.config["dataset"], ctx.config.get("algorithm", {}).get("data")
    if data is None:
        learnt = conversations(dataset)[TRAIN]
    else:
        learnt = written_texts(ctx, Data.model_validate_json(json.dumps(data)))
    draft = scratch.train_tokenizer([], 0)  # knows the chat template, which is all that rendering needs
    texts = ["".join(text for text, _ in chat.written(draft, messages)) for messages in learnt]
    warmup.prepare(ctx, training_tasks(dataset), texts=texts)


def train(ctx: StageContext) -> None:
    """Train the policy; leaves `best/` and `latest/`, each with a `policy` directory."""
    config = SFT.model_validate_json(json.dumps(ctx.config["algorithm"]))
    loader = Loader(ctx)
    policy = loader.policy()
    if is_scored(ctx.config["dataset"]):
        games(ctx, policy)  # what cannot be scored in the end is told now
    splits = wanted_splits(ctx, config, _splits(ctx, config, policy))
    if config.best_by is not None and config.best_by not in splits:
        raise DataError(f"algorithm.best_by: no item of the split {config.best_by!r} has a text to be evaluated by")
    learnt = splits[TRAIN] if config.data is None else _tokens(config, policy, written_texts(ctx, config.data), "data")
    kept = [example for example in learnt if example is not None]
    schedule = Schedule(len(kept), config, ctx.seed)
    learner = loader.learner_of(policy.model, settings(config, schedule))
    work = Work(
        module=policy.model,
        tokens=[example.length for example in kept],
        weights=[float(sum(example.own)) for example in kept],
        order=lambda chosen: quick_order(policy, [kept[index] for index in chosen]),
        collate=lambda part: collate([kept[index] for index in part]),
        loss=lambda batch: batch_loss(policy, batch),
        evaluate=lambda step, cost: _evaluated(policy, splits, METRIC, step, config.batch_tokens, cost, learner),
        model="policy",
        save=learner.saver(policy.model, policy.save),
    )
    Course(ctx, config, work, learner, schedule).run()


def evaluate(ctx: StageContext) -> None:
    """The trained and the untrained model on every split: log-probabilities, and scores where something scores."""
    config = SFT.model_validate_json(json.dumps(ctx.config["algorithm"]))
    folder, step = trained(ctx)
    loader = Loader(ctx)
    models = [("untrained/", 0, loader.policy()), ("", step, loader.saved_policy(folder / "policy"))]
    found: list[Evaluation] = []
    for before, at, policy in models:
        splits = _splits(ctx, config, policy)
        found += _evaluated(policy, splits, f"final/{before}{METRIC}", at, config.batch_tokens, {})
    write_means(ctx, found, "logps.json")
    if is_scored(ctx.config["dataset"]):
        evaluate_all(ctx, [Contestant(f"{before}score", at, policy, 1, None) for before, at, policy in models])


def _splits(ctx: StageContext, config: SFT, policy: Policy) -> Splits:
    """Every split that has something to learn, in tokens."""
    found = (conversations if config.data is None else answered)(ctx.config["dataset"])
    return {split: _tokens(config, policy, written, split) for split, written in found.items()}


def _tokens(config: SFT, policy: Policy, written: Sequence[Messages | None], split: str) -> list[Example | None]:
    everything = config.learn == "everything"
    return examples(policy.tokenizer, written, everything=everything, longest=config.max_tokens, split=split)


def _evaluated(
    policy: Policy,
    splits: Splits,
    metric: str,
    step: int,
    batch_tokens: int,
    cost: Mapping[str, float],
    across: Across = HERE,
) -> list[Evaluation]:
    """The mean log-probability of the learnt tokens of each item; an item without any is left out."""
    found = []
    for split, known in splits.items():
        kept = [(number, example) for number, example in enumerate(known) if example is not None]
        if not kept:
            raise DataError(f"the split {split!r} has no conversation of which anything is left within max_tokens")
        means = mean_logps(policy, [example for _, example in kept], batch_tokens, across)
        items = [ItemScore(number, (value,)) for (number, _), value in zip(kept, means, strict=True)]
        found.append(Evaluation(step=step, metric=metric, items=items, split=split, cost=cost))
    return found
