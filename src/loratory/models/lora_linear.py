"""A frozen linear layer with a LoRA branch, forward and backward as one function.

T: tokens.  I, O: input and output width.  r: rank.

    y = x W^T + bias + scaling * drop(x) A^T B^T

The branch is computed in the number format of ``x``; A and B, and so their gradients, stay in their own (float32).
Saved for the backward: ``x``, the narrow x A^T and, with dropout, which values of ``x`` were dropped.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def lora_linear(
    x: Float[Tensor, "*T I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, "O"] | None,
    a: Float[Tensor, "r I"],
    b: Float[Tensor, "O r"],
    scaling: float,
    dropout: float = 0.0,
) -> Float[Tensor, "*T O"]:
    """The output for a frozen ``weight`` and ``bias``: they get no gradient. ``dropout`` is that of the branch."""
    keep = torch.rand_like(x, dtype=torch.float32) >= dropout if dropout else None
    return _LoraLinear.apply(x, weight, bias, a, b, scaling, keep, 1 - dropout)  # type: ignore[no-any-return]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, a, b, scaling: float, keep, kept_share: float):
        ctx.scaling, ctx.kept_share = scaling, kept_share
        rows = x.reshape(-1, x.shape[-1])
        y = linear(rows, weight, bias)
        inner = _branch_input(rows, keep, kept_share) @ a.to(x.dtype).t()
        y.addmm_(inner, b.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, inner, keep)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor):
        x, weight, a, b, inner, keep = ctx.saved_tensors
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        rows, grad = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
        entering = _branch_input(rows, keep, ctx.kept_share)
        d_inner = (grad @ low_b).mul_(ctx.scaling)
        d_a = (d_inner.t() @ entering).to(a.dtype)
        # r rows of O are cheaper to write than O rows of r
        d_b = (inner.t() @ grad).t().to(b.dtype).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grad @ weight
            if keep is None:
                d_x.addmm_(d_inner, low_a)
            else:
                d_x += _branch_input(d_inner @ low_a, keep, ctx.kept_share)
            d_x = d_x.view_as(x)
        return d_x, None, None, d_a, d_b, None, None, None


def _branch_input(rows: Tensor, keep: Tensor | None, kept_share: float) -> Tensor:
    return rows if keep is None else rows * keep.reshape(rows.shape) / kept_share
