"""Entropy and Kullback–Leibler divergence of categorical distributions given as logits [..., V]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """H(π) = −Σ π log π, over the last axis, in nats."""
    logps = F.log_softmax(logits, dim=-1)
    return -(logps.exp() * logps).sum(-1)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(π ‖ π_ref) = Σ π (log π − log π_ref), over the last axis; never negative, 0 iff they agree."""
    logps, reference_logps = F.log_softmax(logits, dim=-1), F.log_softmax(reference, dim=-1)
    return (logps.exp() * (logps - reference_logps)).sum(-1)


def sampled_kl(logps: Tensor, reference: Tensor) -> Tensor:
    """Schulman's non-negative, low-variance estimate of KL(π ‖ π_ref) from tokens x ~ π.

    k3 = π_ref/π − 1 − log(π_ref/π); its expectation is the exact KL, and only sampled log-probabilities are needed.
    """
    log_ratio = reference - logps
    return log_ratio.exp() - 1.0 - log_ratio
