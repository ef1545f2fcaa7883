"""A read with coefficients that are the same for all tokens (static HC and FC), compiled.

Nothing is repeated for every token, and the coefficients' gradient is summed on the way. What is not covered is
torch's, as in primitives.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import torch_hyper
from hcmegatron.kernels.autocast import without_autocast
from hcmegatron.kernels.native.library import address, function
from hcmegatron.kernels.native.primitives import fits, is_bf16


class _Read(Function):
    """(H [..., w,C], mix [n] or [n,m]) -> (x, H again)."""

    @staticmethod
    @without_autocast
    def forward(ctx: FunctionCtx, H: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
        lead, n, width, m = _sizes(H, mix)
        x = H.new_empty(*lead, m * width)
        function("static_read", n)(*map(address, (H, mix, x)), lead.numel(), width, m, is_bf16(H))
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
        lead, n, width, m = _sizes(H, mix)
        out, dmix = torch.empty_like(H), torch.empty_like(mix)
        dx, dH = dx.contiguous(), None if dH is None else dH.contiguous()
        given = map(address, (H, mix, dx, dH, out, dmix))
        function("static_read_backward", n)(*given, lead.numel(), width, m, is_bf16(H))
        return out, dmix


def _sizes(H: Tensor, mix: Tensor) -> tuple[torch.Size, int, int, int]:
    """The tokens' dimensions, n, the width of a stream or fraction, and m."""
    n = len(mix)
    return H.shape[:-2], n, H.shape[-2] * H.shape[-1] // n, mix.numel() // n


def read(H: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """torch_hyper.static_read."""
    n = len(mix)
    if not fits(H, n, mix) or mix.numel() not in (n, n * n):
        return torch_hyper.static_read(H, mix)
    x, H = _Read.apply(H.contiguous(), mix.contiguous())
    return x, H
