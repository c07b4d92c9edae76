"""The learner: a step worked by hand, sums that do not care how they are cut, and resuming to the bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from engine.errors import ResumeError
from engine.lm.learner import Learner, LearnerSettings, LossOutput
from engine.runtime.checkpoint import read, write


class Line(nn.Module):
    """y = a x + b."""

    def __init__(self, a=1.0, b=0.0):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))


def squares(line):
    def loss(batch):
        x, y = batch
        errors = (line.a * x + line.b - y) ** 2
        return LossOutput(errors.sum(), float(len(x)), {"x": float(x.sum())})

    return loss


DATA = (torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.tensor([3.0, 5.0, 7.0, 9.0, 11.0]))  # y = 2 x + 1


def cut(*sizes):
    return list(zip(DATA[0].split(sizes), DATA[1].split(sizes), strict=True))


def test_one_step_worked_by_hand():
    line = Line()
    learner = Learner(line, LearnerSettings(lr=0.1, clip_norm=None, eps=1e-8))

    metrics = learner.step(squares(line), [DATA])

    # errors −(x + 1): mean square (4+9+16+25+36)/5 = 18; d/da = −2·mean(x(x+1)) = −28, d/db = −2·mean(x+1) = −8
    assert metrics["loss"] == pytest.approx(18.0)
    assert metrics["x"] == pytest.approx(3.0)
    assert metrics["grad_norm"] == pytest.approx(math.hypot(28, 8), rel=1e-6)
    assert line.a.item() == pytest.approx(1.1, abs=1e-6)  # Adam's first step is lr · sign
    assert line.b.item() == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("sizes", [(5,), (1, 4), (2, 3), (1, 1, 1, 1, 1)])
def test_how_a_step_is_cut_into_batches_changes_nothing(sizes):
    whole, parts = Line(), Line()
    a = Learner(whole, LearnerSettings(lr=0.1)).step(squares(whole), [DATA])
    b = Learner(parts, LearnerSettings(lr=0.1)).step(squares(parts), cut(*sizes))

    assert a == pytest.approx(b, rel=1e-6)
    assert_close(parts.a, whole.a)
    assert_close(parts.b, whole.b)


def test_gradients_are_clipped_to_the_norm_and_the_norm_is_reported_unclipped():
    line = Line()
    learner = Learner(line, LearnerSettings(lr=0.1, betas=(0.0, 0.0), eps=1.0, clip_norm=1.0))

    metrics = learner.step(squares(line), [DATA])

    # without momentum the step is lr · g / (|g| + 1); clipped g = (−28, −8) / ‖(28, 8)‖
    g = 28 / math.hypot(28, 8)
    assert metrics["grad_norm"] == pytest.approx(math.hypot(28, 8), rel=1e-6)
    assert line.a.item() == pytest.approx(1 + 0.1 * g / (g + 1), rel=1e-4)


def test_decay_is_decoupled():
    line = Line(a=2.0)
    learner = Learner(line, LearnerSettings(lr=0.1, weight_decay=0.5, clip_norm=None))

    learner.step(lambda _: LossOutput(line.b * 0.0 + line.a * 0.0, 1.0), [None])

    assert line.a.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]),
    ],
)
def test_rates_follow_the_schedule(schedule, expected):
    line = Line()
    learner = Learner(line, LearnerSettings(lr=1.0, schedule=schedule, warmup_steps=1, total_steps=5))

    rates = [learner.step(squares(line), [DATA])["lr"] for _ in range(5)]

    assert rates == pytest.approx(expected)


def test_a_resumed_learner_walks_on_to_the_bit(tmp_path):
    torch.manual_seed(0)
    straight = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    broken = copy.deepcopy(straight)
    settings = LearnerSettings(lr=0.03, weight_decay=0.1, schedule="cosine", total_steps=9, warmup_steps=2)
    batches = [torch.randn(6, 3) for _ in range(9)]

    def run(net, learner, part):
        for x in part:
            learner.step(lambda x: LossOutput((net(x) - x.sum(-1, keepdim=True)).pow(2).sum(), 6.0), [x])
        return learner

    run(straight, Learner(straight, settings), batches)
    first = run(broken, Learner(broken, settings), batches[:4])
    write(tmp_path / "step-4", 4, {"learner": first.state()})
    fresh = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    second = Learner(fresh, settings)
    second.load_state(read(tmp_path / "step-4").state["learner"])
    run(fresh, second, batches[4:])

    for a, b in zip(straight.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_is_a_copy_that_later_steps_leave_alone():
    line = Line()
    learner = Learner(line, LearnerSettings(lr=0.1))
    learner.step(squares(line), [DATA])
    state = learner.state()
    kept = copy.deepcopy(state)

    learner.step(squares(line), [DATA])

    assert torch.equal(state["weights"]["a"], kept["weights"]["a"])
    assert torch.equal(state["moments"]["a"]["exp_avg"], kept["moments"]["a"]["exp_avg"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("moments"), "steps, weights and moments"),
        (lambda s: s["weights"].pop("b"), "disagree about trainable weights: b"),
        (lambda s: s["weights"].update(c=torch.zeros(1)), "disagree about trainable weights: c"),
        (lambda s: s["weights"].update(a=torch.zeros(2)), "another shape"),
        (lambda s: s["moments"].pop("a"), "moments of a are missing"),
        (lambda s: s["moments"].update(c={}), "does not train"),
    ],
)
def test_a_state_of_something_else_is_refused(spoil, message):
    line = Line()
    learner = Learner(line, LearnerSettings(lr=0.1))
    learner.step(squares(line), [DATA])
    state = learner.state()
    spoil(state)

    with pytest.raises(ResumeError, match=message):
        Learner(Line(), LearnerSettings(lr=0.1)).load_state(state)


def test_frozen_weights_do_not_move_and_nothing_to_train_is_an_error():
    line = Line()
    line.b.requires_grad_(False)
    Learner(line, LearnerSettings(lr=0.1)).step(squares(line), [DATA])

    assert line.b.item() == 0.0
    line.a.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing in this module is trainable"):
        Learner(line, LearnerSettings(lr=0.1))


def test_a_step_without_units_and_a_schedule_without_an_end_are_refused():
    line = Line()
    with pytest.raises(ValueError, match="positive weight"):
        Learner(line, LearnerSettings(lr=0.1)).step(lambda _: LossOutput(line.a * 0, 0.0), [None])
    with pytest.raises(ValueError, match="needs total_steps"):
        Learner(line, LearnerSettings(lr=0.1, schedule="linear"))


def test_half_precision_casts_the_forward_and_keeps_weights_whole():
    net = nn.Linear(4, 1)
    seen = []

    def loss(x):
        out = net(x)
        seen.append(out.dtype)
        return LossOutput(out.float().pow(2).sum(), 1.0)

    Learner(net, LearnerSettings(lr=0.1), precision=torch.bfloat16).step(loss, [torch.ones(2, 4)])

    assert seen == [torch.bfloat16]
    assert net.weight.dtype == torch.float32
