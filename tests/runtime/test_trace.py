"""The stream of fingerprints, and a stage that does not do the same twice: caught, and its layer named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.compare.fingerprints import parting
from engine.lm.learner import Learner, LearnerSettings, LossOutput
from engine.runtime.context import StageContext
from engine.runtime.local import LocalContext
from engine.runtime.trace import SILENT, Trace, digest
from engine.store.fingerprints import Fingerprint, Layer

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


def told(value: object) -> str:
    """`value` with its bits spelled out: NaN equals itself, -0.0 is not 0.0, True is not 1."""
    if isinstance(value, list):
        return f"[{','.join(map(told, value))}]"
    return f"{type(value).__name__} {value.hex() if isinstance(value, float) else value!r}"


@given(TREES, TREES)
def test_values_have_the_same_fingerprint_exactly_if_they_are_the_same(one: object, other: object):
    assert (digest(one) == digest(other)) == (told(one) == told(other))


def test_one_bit_of_a_tensor_shows():
    tensor = torch.linspace(-1, 1, 1000)
    other = tensor.clone()
    other.view(torch.int32)[617] ^= 1

    assert digest(tensor) == digest(tensor.clone()) == digest(tensor[:].contiguous())
    assert digest(tensor) != digest(other)
    assert digest(tensor) != digest(tensor.reshape(10, 100))
    assert digest(tensor) != digest(tensor.double())
    assert digest(torch.zeros(4, dtype=torch.bfloat16)) != digest(torch.zeros(4, dtype=torch.int16))
    assert digest(np.zeros(3, np.int32)) != digest(np.zeros(3, np.uint32))


def test_a_digest_is_64_bits_that_no_other_process_changes():
    assert digest("rlx", [1, 2, 3], 0.5) == digest("rlx", [1, 2, 3], 0.5) < 2**64
    # blake2b of b"s3;rlx", worked out apart
    assert digest("rlx") == int.from_bytes(__import__("hashlib").blake2b(b"s3;rlx", digest_size=8).digest(), "little")


def test_what_has_no_bits_of_its_own_is_refused():
    with pytest.raises(TypeError, match="object"):
        digest(object())
    with pytest.raises(TypeError, match="objects"):
        digest(np.array([object()]))


def test_entries_are_handed_over_in_order_and_forgotten_behind_a_checkpoint():
    kept: list[Fingerprint] = []
    trace = Trace(kept.extend)
    trace.step = 3
    trace.note(Layer.DATA, 1)
    assert kept == []
    trace.flush()
    trace.note(Layer.UPDATE, 2)
    trace.rewind(1, step=2)
    trace.note(Layer.REWARD, 3)
    trace.flush()

    assert [entry[:3] for entry in kept] == [(0, 3, Layer.DATA), (1, 2, Layer.REWARD)]


def test_a_long_stage_without_checkpoints_hands_over_as_it_goes():
    kept: list[Fingerprint] = []
    trace = Trace(kept.extend)
    for number in range(10_000):
        trace.note(Layer.DATA, number)

    assert 0 < 10_000 - len(kept) < 10_000
    trace.flush()
    assert [entry.place for entry in kept] == list(range(10_000))


def test_a_silent_trace_notes_nothing():
    SILENT.note(Layer.DATA, object())
    assert not SILENT.on
    assert SILENT.place == 0


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, -1.0]))


Fault = Callable[[int], None]


def train(ctx: StageContext, *, stop_after: int = 6, forget: str = "") -> None:
    """Six steps on drawn numbers, scored by a function, a checkpoint every second; `forget` is lost by a resume."""
    line, rng = Line(), np.random.default_rng(5)
    learner = Learner(line, LearnerSettings(lr=0.1), trace=ctx.trace)
    noise = np.random.default_rng(6)
    restored, first = ctx.restore(), 1
    if restored is not None:
        first = restored.step + 1
        state = dict(restored.state["learner"])
        if forget == "moments":
            state["moments"] = {
                name: {key: torch.zeros_like(value) for key, value in moments.items()}
                for name, moments in state["moments"].items()
            }
        learner.load_state(state)
        if forget != "order":
            rng.bit_generator.state = restored.state["rng"]
        if forget != "noise":
            noise.bit_generator.state = restored.state["noise"]
    for step in range(first, stop_after + 1):
        ctx.trace.step = step
        drawn = rng.integers(100, size=3)
        ctx.trace.note(Layer.DATA, drawn)
        said = noise.integers(50, size=4)
        ctx.trace.note(Layer.SAMPLING, said)
        (score,) = ctx.functions.score([str(said)], [None])
        target = torch.tensor([float(drawn.sum()), score])
        learner.step(lambda batch: LossOutput(((line.a - batch) ** 2).sum(), 1.0), [target])
        if step % 2 == 0:
            state = {"learner": learner.state(), "rng": rng.bit_generator.state, "noise": noise.bit_generator.state}
            ctx.checkpoint(step, state)


class Scores:
    """A reward: the length of the text, or, `drifting`, one more at every call."""

    hash, has_reply = "h", False

    def __init__(self, *, drifting: bool = False) -> None:
        self._calls, self._drifting = 0, drifting

    def score(self, texts, answers):
        self._calls += self._drifting
        return [float(len(text) + self._calls) for text in texts]


def resumed(folder: Path, *, forget: str = "", drifting: bool = False) -> list[Fingerprint]:
    """The stream of a stage that was killed in its fourth step and went on from its checkpoint of step 2."""

    def context(name: str) -> LocalContext:
        functions = Scores(drifting=drifting)
        return LocalContext({}, 0, folder / name, functions=functions, checkpoint_dir=folder / "kept")  # type: ignore[arg-type]

    first, second = context("first"), context("second")
    train(first, stop_after=3)
    train(second, forget=forget)
    return [*(entry for entry in first.fingerprints if entry.step <= 2), *second.fingerprints]


@pytest.mark.parametrize(
    "fault, where",
    [
        ({}, None),
        ({"forget": "order"}, "step 3, data order"),
        ({"forget": "noise"}, "step 3, sampling"),
        ({"drifting": True}, "step 3, reward"),
        ({"forget": "moments"}, "step 3, weights"),
    ],
)
def test_a_stage_that_does_not_resume_as_it_was_is_caught_at_the_layer_that_it_forgot(
    tmp_path: Path, fault: dict, where: str | None
):
    whole = LocalContext({}, 0, tmp_path / "whole", functions=Scores(drifting="drifting" in fault))  # type: ignore[arg-type]
    train(whole)

    found = parting(whole.fingerprints, resumed(tmp_path, **fault))

    assert (found and str(found)) == where


def test_a_loss_that_differs_is_an_update_that_differs(tmp_path: Path):
    streams = []
    for scale in (1.0, 1.0 + 1e-7):
        ctx, line = LocalContext({}, 0, tmp_path / str(scale)), Line()
        learner = Learner(line, LearnerSettings(lr=0.1), trace=ctx.trace)
        for step in (1, 2):
            ctx.trace.step = step
            factor = scale if step == 2 else 1.0
            learner.step(lambda _, line=line, factor=factor: LossOutput((line.a**2).sum() * factor, 1.0), [None])
        streams.append(ctx.fingerprints)

    assert str(parting(*streams)) == "step 2, update"
