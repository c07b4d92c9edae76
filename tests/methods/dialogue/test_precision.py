"""What `hardware.precision` does: adapters ride on weights of that format, full training keeps float32 weights."""

import pytest
import torch

from engine.errors import SpecError
from engine.methods.dialogue.models import number_format


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
    ],
)
def test_auto_is_half_precision_on_a_gpu_alone(precision: str, device: str, expected: torch.dtype) -> None:
    assert number_format(precision, device) == expected


def test_float16_is_refused_for_it_would_need_loss_scaling() -> None:
    with pytest.raises(SpecError, match="write bfloat16"):
        number_format("float16", "cuda")
