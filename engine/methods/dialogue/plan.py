"""The plan that all methods of conversations share: make the model, train it, evaluate what came out. Light."""

from __future__ import annotations

from engine.plan.stage import Stage

PREPARE = "engine.methods.dialogue.prepare:prepare"
READS = ("dataset", "algorithm", "evaluation", "model", "hardware.precision")


def three_stages(*, kind: str, train: str, evaluate: str, evaluates: str = "dialogue.evaluate") -> list[Stage]:
    """`model` → `train` → `evaluate`; `train` and `evaluate` name the code, `kind` and `evaluates` what it computes."""
    return [
        Stage(name="model", kind="lm.prepare", run=PREPARE, reads=("model", "dataset")),
        Stage(name="train", kind=kind, run=train, reads=READS, inputs={"model": "model"}),
        Stage(name="evaluate", kind=evaluates, run=evaluate, reads=READS, inputs={"model": "model", "train": "train"}),
    ]
