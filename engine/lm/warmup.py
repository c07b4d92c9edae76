"""The stage `model`: turns the spec's model into something that later stages load.

A scratch model gets a tokenizer trained on its warm-up text and a short training on it, and is written as
a Hugging Face directory; a tiny twin gets random weights. Any other model is only resolved: `reference.json`
says where it is, and its weights are not copied. `source_of` reads either form back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.errors import ModelError, SpecError
from engine.lm import chat, scratch, tiny
from engine.lm.learner import Learner, LearnerSettings
from engine.lm.policy import Policy
from engine.lm.prefetch import made_ahead
from engine.lm.reference import Source, parse
from engine.lm.supervised import Batch, Example, batch_loss, collate, completion_loss
from engine.lm.warmup_text import Conversation, Task, conversations
from engine.runtime.context import StageContext, Stopped
from engine.runtime.seeds import derive
from engine.spec.model import Model, Warmup
from engine.store.fingerprints import Layer

REFERENCE = "reference.json"
_CHECKPOINT_EVERY = 100
_VOCABULARY = 490


def prepare(ctx: StageContext, tasks: Sequence[Task] | None = None, texts: Sequence[str] = ()) -> None:
    """Make or resolve the model of the spec; see the module.

    `tasks` are the training items where the dataset block only names a file or a hub dataset: reading those
    is the caller's business. From `texts` the tokenizer of a new model learns beside what it will read.
    """
    model = Model.model_validate_json(json.dumps(ctx.config["model"]))
    reference, dataset = parse(model.name), ctx.config["dataset"]
    if reference.kind in ("scratch", "tiny"):
        tasks = tasks_of(dataset) if tasks is None else tasks
    if reference.kind == "scratch":
        train_scratch(ctx, reference.name, model.warmup, tasks or (), system=dataset["system_prompt"], texts=texts)
        return
    if reference.kind == "tiny":
        known = [*(task.user for task in tasks or ()), *texts]
        tiny.build(reference.name, known, seed=derive(ctx.seed, "tiny")).save(ctx.output_dir)
        return
    path = ctx.extra.get("model_path", reference.name)
    if reference.kind == "run" and "model_path" not in ctx.extra:
        raise ModelError(f"{model.name}: the checkpoint was not resolved to a directory when the run was submitted.")
    revision = reference.label if reference.kind == "hub" else None
    write_reference(ctx.output_dir, Source(str(path), revision, model.trust_remote_code))


def write_reference(folder: Path, source: Source) -> None:
    """Record where a model is instead of copying it."""
    said = {"path": source.path, "revision": source.revision, "trust_remote_code": source.trust_remote_code}
    (folder / REFERENCE).write_text(json.dumps(said, indent=1), encoding="utf-8")


def source_of(folder: Path) -> Source:
    """What the stage `model` left in `folder`: the directory itself, or the reference in it."""
    note = folder / REFERENCE
    if not note.is_file():
        return Source(str(folder))
    return Source(**json.loads(note.read_text(encoding="utf-8")))


def tasks_of(dataset: Any) -> list[Task]:
    """The inline items of a dataset block, each with its whole user message."""
    items = dataset["items"]
    if not isinstance(items, Sequence):
        raise SpecError("model.warmup needs dataset.items inline: it is made from their prompts.")
    main = dataset.get("main_prompt", "")
    return [Task(f"{main}\n{item['prompt']}" if main else item["prompt"], item.get("answer")) for item in items]


def train_scratch(
    ctx: StageContext,
    preset: str,
    warmup: Warmup | None,
    tasks: Sequence[Task],
    *,
    system: str,
    texts: Sequence[str] = (),
) -> Policy:
    """Text, tokenizer, weights, training; writes the model into `ctx.output_dir`.

    Without a warm-up the tokenizer knows the prompts and the weights stay random.
    """
    scratch.preset(preset)
    if warmup is not None and not tasks:
        raise SpecError("model.warmup needs items that begin with a `prompt`: written conversations are learnt by sft")
    draft = scratch.train_tokenizer([], 0)  # knows the chat template, which is all that rendering needs
    opening = {task.user: chat.opening_text(draft, system, task.user) for task in tasks}
    read: list[Conversation] = []
    if warmup is not None:
        read = conversations(
            warmup,
            tasks,
            examples=warmup.examples,
            opening=opening,
            bridge=lambda reply: chat.reply_text(draft, reply),
            functions=ctx.functions if warmup.utterances is not None else None,
            rng=np.random.default_rng(derive(ctx.seed, "warmup", "text")),
        )
        for user in {conversation.user for conversation in read} - set(opening):
            opening[user] = chat.opening_text(draft, system, user)
    tokenizer = scratch.train_tokenizer(
        [*_texts(read, opening, draft), *texts], warmup.vocab_size if warmup else _VOCABULARY
    )
    policy = Policy(scratch.build(preset, tokenizer, seed=derive(ctx.seed, "warmup", "weights")), tokenizer)
    if warmup is not None:
        _train(
            ctx,
            policy,
            warmup,
            [
                example(conversation, opening, tokenizer, replies=warmup.learn == "conversation")
                for conversation in read
            ],
        )
    policy.save(ctx.output_dir)
    return policy


def _train(ctx: StageContext, policy: Policy, warmup: Warmup, examples: Sequence[Example]) -> None:
    held = int(len(examples) * warmup.holdout)
    kept, heldout = examples[held:], examples[:held]
    policy.model.to(ctx.device)
    policy.model.train()
    settings = LearnerSettings(
        lr=warmup.lr, betas=(0.9, 0.99), weight_decay=0.01, schedule="cosine", total_steps=warmup.steps
    )
    learner = Learner(policy.model, settings, trace=ctx.trace)
    restored = ctx.restore()
    if restored is not None:
        learner.load_state(restored.state["learner"])
    with made_ahead(_drawn(ctx.seed, warmup, kept, learner.steps), ctx.device) as batches:
        for drawn, batch in batches:
            ctx.trace.step = learner.steps + 1
            ctx.trace.note(Layer.DATA, drawn)
            metrics = learner.step(lambda batch: batch_loss(policy, batch), [batch])
            ctx.log(learner.steps, {"train/loss": metrics["loss"], "train/grad_norm": metrics["grad_norm"]})
            ctx.progress(learner.steps, warmup.steps, "warming up")
            if ctx.should_stop or (learner.steps % _CHECKPOINT_EVERY == 0 and learner.steps < warmup.steps):
                ctx.checkpoint(learner.steps, {"learner": learner.state()})
            if ctx.should_stop:
                raise Stopped
    policy.model.eval()
    if heldout:
        with torch.no_grad():
            out = completion_loss(policy, heldout)
        ctx.log(warmup.steps, {"eval/loss": float(out.loss) / out.weight})


def _drawn(seed: int, warmup: Warmup, kept: Sequence[Example], first: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """What each step learns from, by number and as a batch."""
    for step in range(first, warmup.steps):
        order = np.random.default_rng(derive(seed, "warmup", "batch", step))
        drawn = order.integers(len(kept), size=warmup.batch_size)
        yield drawn, collate([kept[int(i)] for i in drawn])


def example(
    conversation: Conversation, opening: Mapping[str, str], tokenizer: Any, *, replies: bool = False
) -> Example:
    """The conversation in tokens: every utterance ends its turn; replies and headers are given, or learnt as well."""
    rest: list[int] = []
    own: list[bool] = []
    for turn in conversation.turns:
        said = [*chat.encode(tokenizer, turn.said), tokenizer.eos_token_id]
        rest += said
        own += [True] * len(said)
        if turn.reply is not None:
            bridge = chat.encode(tokenizer, chat.reply_text(tokenizer, turn.reply))[1:]  # its end of turn is said above
            rest += bridge
            own += [replies] * len(bridge)
    return Example(chat.encode(tokenizer, opening[conversation.user]), rest, own)


def _texts(read: Sequence[Conversation], opening: dict[str, str], tokenizer: Any) -> list[str]:
    """What the tokenizer learns from: every rendered opening, utterance and reply."""
    texts = list(dict.fromkeys(opening.values()))
    for conversation in read:
        for turn in conversation.turns:
            texts.append(turn.said)
            if turn.reply is not None:
                texts.append(chat.reply_text(tokenizer, turn.reply))
    return texts
