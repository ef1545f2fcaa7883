"""The write of HC and FC, compiled, of streams and coefficients as connections hold them, with no view in between that
autograd would follow. Of coefficients that are the same for all tokens nothing is repeated, and their gradients are
summed on the way. What is not covered goes by way of torch_hyper's write, as in primitives.py.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hcmegatron.kernels import torch_hyper, torch_path
from hcmegatron.kernels.autocast import without_autocast
from hcmegatron.kernels.native.library import address, function
from hcmegatron.kernels.native.primitives import NativePrimitives, fits, is_bf16

_by_torch = functools.partial(
    torch_hyper.write, by=functools.partial(torch_path.write, primitives=NativePrimitives())
)


class _Write(Function):
    """(H [..., w,C], y [..., C], post [..., n] or [n], res [..., n,n] or [n,n]) -> H'."""

    @staticmethod
    @without_autocast
    def forward(ctx: FunctionCtx, H: Tensor, y: Tensor, post: Tensor, res: Tensor) -> Tensor:
        out = torch.empty_like(H)
        function("write_forward", post.shape[-1])(*map(address, (H, y, post, res, out)), *_sizes(H, y, post))
        ctx.save_for_backward(H, y, post, res)
        return out

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: FunctionCtx, d: Tensor) -> tuple[Tensor, ...]:
        H, y, post, res = ctx.saved_tensors
        d, made = d.contiguous(), tuple(torch.empty_like(each) for each in (H, y, post, res))
        pointers = map(address, (H, y, post, res, d, *made))
        function("write_backward", post.shape[-1])(*pointers, *_sizes(H, y, post))
        return made


def _sizes(H: Tensor, y: Tensor, post: Tensor) -> tuple[int, ...]:
    """T, a stream's or fraction's width, the step from one's y to the next one's, and what is how."""
    T, width = H.shape[:-2].numel(), H.shape[-2] * H.shape[-1] // post.shape[-1]
    step = 0 if y.shape[-1] == width else width
    return T, width, step, post.dim() == 1, is_bf16(H), is_bf16(y)


def write(
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """torch_hyper.write."""
    alike = post.dim() == 1, res.dim() == 2
    if not fits(H, post.shape[-1], post) or y.dtype not in (H.dtype, torch.float32) or alike[0] != alike[1]:
        return _by_torch(H, y, post, res, bias, dropout)
    if bias is not None or dropout:
        y = y.to(post.dtype)  # as torch_path.write
    if bias is not None:
        y = y + bias
    if dropout:
        y = F.dropout(y, dropout)
    out: Tensor = _Write.apply(*(each.contiguous() for each in (H, y, post, res)))
    return out
