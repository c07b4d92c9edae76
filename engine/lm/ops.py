"""Fused differentiable operations, written out because autograd's version costs several times the arithmetic.

Each has its derivative beside its value; tests check them by finite differences.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RMSNorm(torch.autograd.Function):
    """y = x · r · w with r = (mean(x²) + ε)^(−1/2), over the last dimension of x [N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = _inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """dx = r · (g ⊙ w) − x · r³ · Σ(g ⊙ w ⊙ x) / D;  dw = Σ_n g ⊙ x · r."""
        x, weight, r = ctx.saved_tensors
        product = grad * x
        dx = None
        if ctx.needs_input_grad[0]:
            along = product.mv(weight).unsqueeze(-1).mul_(r.pow(3)).div_(x.shape[-1])
            dx = (grad * weight).mul_(r).addcmul_(x, along, value=-1.0)
        dw = product.t().mv(r.squeeze(-1)) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS normalisation of float32 rows [N, D]."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        out: Tensor = RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return out
    return (x * _inverse_rms(x, eps)).mul_(weight)


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """[N, 1]"""
    mean = dot(x, x).div_(x.shape[-1])
    return mean.add_(eps).rsqrt_().unsqueeze(-1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Row-wise inner products [N] of [N, D], in the rows' own precision: autocast would round them to half of it."""
    kind = a.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        products: Tensor = torch.linalg.vecdot(a, b)
    return products


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary position embedding of [N, H, d] by complex [N, 1, d / 2], or by their real and imaginary parts
    [N, 1, d / 2, 2]; the halves of a rotating pair become neighbours.

    Queries and keys are reordered alike, so their products are what they were; the result is never put back.
    """
    half = x.shape[-1] // 2
    if not rotation.is_complex():
        cos, sin = rotation.unbind(-1)
        a, b = x[..., :half].float(), x[..., half:].float()
        return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2).to(x.dtype)
    pairs = x.float().view(*x.shape[:-1], 2, half).transpose(-1, -2).contiguous()
    turned = torch.view_as_real(torch.view_as_complex(pairs) * rotation)
    return turned.flatten(-2).to(x.dtype)
