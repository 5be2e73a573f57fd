"""A frozen linear layer with a LoRA branch, computed as one autograd function.

T: tokens.  I, O: input and output width.  r: rank.

    y = x W^T + bias + scaling * drop(x) A^T B^T

The branch is computed in the dtype of ``x``; A and B, and therefore their gradients, keep their own dtype (float32).
Saved for the backward pass: ``x``, the narrow x A^T and, with dropout, the dropout mask.
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
    """The layer's output. ``weight`` and ``bias`` are frozen and get no gradient; ``dropout`` applies to the branch."""
    keep = torch.rand_like(x, dtype=torch.float32) >= dropout if dropout else None
    return _LoraLinear.apply(x, weight, bias, a, b, scaling, keep, 1 - dropout)  # type: ignore[no-any-return]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, a, b, scaling: float, keep, keep_probability: float):
        ctx.scaling, ctx.keep_probability = scaling, keep_probability
        rows = x.reshape(-1, x.shape[-1])
        y = linear(rows, weight, bias)
        inner = _branch_input(rows, keep, keep_probability) @ a.to(x.dtype).t()
        y.addmm_(inner, b.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, inner, keep)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor):
        x, weight, a, b, inner, keep = ctx.saved_tensors
        low_a, low_b = a.to(x.dtype), b.to(x.dtype)
        rows, grad = x.reshape(-1, x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
        branch_input = _branch_input(rows, keep, ctx.keep_probability)
        d_inner = (grad @ low_b).mul_(ctx.scaling)
        d_a = (d_inner.t() @ branch_input).to(a.dtype)
        # writing r rows of length O is cheaper than writing O rows of length r
        d_b = (inner.t() @ grad).t().to(b.dtype).mul_(ctx.scaling)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = grad @ weight
            if keep is None:
                d_x.addmm_(d_inner, low_a)
            else:
                d_x += _branch_input(d_inner @ low_a, keep, ctx.keep_probability)
            d_x = d_x.view_as(x)
        return d_x, None, None, d_a, d_b, None, None, None


def _branch_input(rows: Tensor, keep: Tensor | None, keep_probability: float) -> Tensor:
    return rows if keep is None else rows * keep.reshape(rows.shape) / keep_probability
