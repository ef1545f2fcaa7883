"""Reads and writes with coefficients that are the same for all tokens (static HC and FC), compiled.

Nothing is repeated for every token, and gradients of coefficients are summed on the way. What is not covered is
torch's, with coefficients repeated, as in primitives.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import torch_hyper, torch_path
from hcmegatron.kernels.autocast import without_autocast
from hcmegatron.kernels.native.library import address, function
from hcmegatron.kernels.native.primitives import NativePrimitives, is_bf16, of_streams, of_write

_BY_C = NativePrimitives()


class _Read(Function):
    """(H, mix) -> (x, H again)."""

    @staticmethod
    @without_autocast
    def forward(ctx: FunctionCtx, H: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
        (T, n, C), m = H.shape, len(mix)
        x = H.new_empty(T, m, C)
        function("static_read", n)(*map(address, (H, mix, x)), T, C, m, is_bf16(H))
        ctx.save_for_backward(H, mix)
        ctx.set_materialize_grads(False)
        return x, H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx, dx: Tensor | None, dH: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if dx is None:
            return dH, None
        H, mix = ctx.saved_tensors
        (T, n, C), out, dmix = H.shape, torch.empty_like(H), torch.empty_like(mix)
        dx, dH = dx.contiguous(), None if dH is None else dH.contiguous()
        given = (H, mix, dx, dH, out, dmix)
        function("static_read_backward", n)(*map(address, given), T, C, len(mix), is_bf16(H))
        return out, dmix


def read(H: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """torch_hyper.static_read."""
    if not of_streams(H, mix) or len(mix) not in (1, H.shape[1]):
        return torch_hyper.static_read(H, mix)
    x, H = _Read.apply(H.contiguous(), mix.contiguous())
    return x, H


def write(
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """torch_path.write with post [n] and res [n,n]."""
    T, n, _ = H.shape
    if not of_write(H, y, post):
        post, res = post.expand(T, n), res.expand(T, n, n)
    return torch_path.write(H, y, post, res, bias, dropout, primitives=_BY_C)
