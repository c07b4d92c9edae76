"""Means and whitening over the real entries of a padded tensor. What a mask means is the caller's business."""

from __future__ import annotations

from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is 1: Σ mx / Σ m; zero if the mask is empty. Padding may hold anything finite."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def whiten(values: Tensor, mask: Tensor, *, epsilon: float = 1e-8) -> Tensor:
    """`values` shifted and scaled to mean 0 and (population) deviation 1 over the mask; zero outside it."""
    mask = mask.to(values.dtype)
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    return (values - mean) / (variance + epsilon).sqrt() * mask
