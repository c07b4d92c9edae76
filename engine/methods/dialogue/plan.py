"""The plan that all methods of conversations share: make the model, train it, evaluate what came out. Light."""

from __future__ import annotations

from collections.abc import Collection

from engine.plan.stage import Stage

PREPARE = "engine.methods.dialogue.prepare:prepare"
MODEL = ("model.name", "model.lora", "model.trust_remote_code", "model.warmup")
"""What makes a model; who completes prompts with it matters only to a stage that asks."""
SAMPLER = "model.sampler"
READS = ("dataset", "algorithm", "evaluation", *MODEL, "hardware.precision")


def three_stages(
    *,
    kind: str,
    train: str,
    evaluate: str,
    evaluates: str = "dialogue.evaluate",
    sampling: Collection[str] = ("train", "evaluate"),
) -> list[Stage]:
    """`model` → `train` → `evaluate`; `train` and `evaluate` name the code, `kind` and `evaluates` what it computes.

    `sampling` are the stages that complete prompts.
    """
    train_reads, evaluate_reads = ((*READS, SAMPLER) if name in sampling else READS for name in ("train", "evaluate"))
    made = {"model": "model"}
    return [
        Stage(name="model", kind="lm.prepare", run=PREPARE, reads=(*MODEL, "dataset")),
        Stage(name="train", kind=kind, run=train, reads=train_reads, inputs=made),
        Stage(name="evaluate", kind=evaluates, run=evaluate, reads=evaluate_reads, inputs={**made, "train": "train"}),
    ]
