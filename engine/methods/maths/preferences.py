"""Losses of preferences: which of two answers is the better one. Tensors only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Negative log-likelihood that the chosen answer wins (Bradley and Terry, 1952).

        L = −log σ(r_c − r_r − m)

    chosen, rejected: rewards r [P]; margin m [P] or a number: by how much the reward of the better one has to be
    larger before the loss is small (Touvron et al., 2023, Llama 2, equation 2). Returns [P].
    """
    return -F.logsigmoid(chosen - rejected - margin)
