"""The heavy stages of a reward model: its backbone, its training, and how often it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.errors import DataError
from engine.lm import chat, scratch, warmup
from engine.lm.heads import ScalarHead, load_head
from engine.lm.learner import LossOutput
from engine.lm.policy import load_tokenizer
from engine.lm.reference import Source
from engine.lm.shares import HERE, Across
from engine.methods.dialogue.models import Loader
from engine.methods.dialogue.prepare import training_tasks
from engine.methods.maths.preferences import bradley_terry
from engine.methods.reward.config import Reward
from engine.methods.reward.pairs import (
    Batch,
    Pair,
    all_rewards,
    batch_rewards,
    collate,
    in_tokens,
    quick_order,
    written,
)
from engine.methods.supervised.course import Course, Schedule, Work, settings, trained, wanted_splits, write_means
from engine.runtime.context import Evaluation, ItemScore, StageContext

ACCURACY, GAP = "accuracy", "gap"
"""How often the better answer gets the larger reward (a tie is half right); by how much, on average."""
MODEL = "reward"
Splits = Mapping[str, Sequence[Pair | None]]


def prepare(ctx: StageContext) -> None:
    """Make or resolve the model of the spec; a scratch model's tokenizer knows the answers."""
    train, *_ = written(ctx.config["dataset"]).values()
    draft = scratch.train_tokenizer([], 0)  # knows the chat template, which is all that rendering needs
    texts = [
        "".join(text for text, _ in chat.written(draft, messages))
        for preference in train
        for messages in (preference.chosen, preference.rejected)
    ]
    warmup.prepare(ctx, training_tasks(ctx.config["dataset"]), texts=texts)


def train(ctx: StageContext) -> None:
    """Train the reward model; leaves `best/` and `latest/`, each with a `reward` directory."""
    config = Reward.model_validate(ctx.config["algorithm"])
    loader = Loader(ctx)
    head = loader.head(load_tokenizer(loader.source))
    splits = wanted_splits(ctx, config, _splits(ctx, config, head))
    kept = [pair for pair in splits["train"] if pair is not None]
    schedule = Schedule(len(kept), config, ctx.seed)
    learner = loader.learner_of(head, settings(config, schedule))
    work = Work(
        module=head,
        tokens=[pair.length for pair in kept],
        weights=[1.0] * len(kept),
        order=lambda chosen: quick_order([kept[index] for index in chosen]),
        collate=lambda part: collate([kept[index] for index in part]),
        loss=lambda batch: batch_loss(head, batch, centre=config.centre),
        evaluate=lambda step, cost: _evaluated(head, splits, "", step, config.batch_tokens, cost, learner),
        model=MODEL,
        save=learner.saver(head.model, head.save),
    )
    Course(ctx, config, work, learner, schedule).run()


def evaluate(ctx: StageContext) -> None:
    """How often the trained model is right, on every split."""
    config = Reward.model_validate(ctx.config["algorithm"])
    folder, step = trained(ctx)
    loader = Loader(ctx)
    place = folder / MODEL
    head = load_head(place, load_tokenizer(Source(str(place))), device=ctx.device, dtype=loader.dtype)
    splits = _splits(ctx, config, head)
    write_means(ctx, _evaluated(head, splits, "final/", step, config.batch_tokens, {}), "accuracies.json")


def pair_loss(head: ScalarHead, pairs: Sequence[Pair], *, centre: float = 0.0) -> LossOutput:
    """The Bradley–Terry loss of pairs, summed, and `centre` times (r_c + r_r)²."""
    return batch_loss(head, collate(pairs), centre=centre)


def batch_loss(head: ScalarHead, batch: Batch, *, centre: float = 0.0) -> LossOutput:
    """The same of a batch."""
    chosen, rejected = batch_rewards(head, batch)
    loss = bradley_terry(chosen, rejected, batch.margins.to(chosen.device)).sum()
    if centre:
        loss = loss + centre * (chosen + rejected).square().sum()
    gaps = (chosen - rejected).detach()
    told = {ACCURACY: float((gaps > 0).sum() + 0.5 * (gaps == 0).sum()), GAP: float(gaps.sum())}
    return LossOutput(loss, float(len(gaps)), told)


def _splits(ctx: StageContext, config: Reward, head: ScalarHead) -> Splits:
    return {
        name: in_tokens(head.tokenizer, found, longest=config.max_tokens, margins=config.margins)
        for name, found in written(ctx.config["dataset"]).items()
    }


def _evaluated(
    head: ScalarHead,
    splits: Splits,
    before: str,
    step: int,
    batch_tokens: int,
    cost: Mapping[str, float],
    across: Across = HERE,
) -> list[Evaluation]:
    found = []
    for split, known in splits.items():
        kept = [(number, pair) for number, pair in enumerate(known) if pair is not None]
        if not kept:
            raise DataError(f"the split {split!r} has no preference of which both answers are left within max_tokens")
        said = all_rewards(head, [pair for _, pair in kept], batch_tokens, across)
        for metric in (ACCURACY, GAP):
            items = [
                ItemScore(number, (float(c - r) if metric == GAP else (c > r) + 0.5 * (c == r),))
                for (number, _), (c, r) in zip(kept, said, strict=True)
            ]
            found.append(Evaluation(step=step, metric=f"{before}{metric}", items=items, split=split, cost=cost))
    return found
