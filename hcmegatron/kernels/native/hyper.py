"""The dynamic read of HC and FC, compiled, in place of torch_hyper's.

That one still runs what this does not cover: tensors off the CPU, precisions other than fp32 parameters beside fp32 or
bf16 streams, a width of streams that is no multiple of 16, and streams whose squares leave fp32's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import torch_hyper
from hcmegatron.kernels.autocast import without_autocast
from hcmegatron.kernels.native.library import address, function
from hcmegatron.kernels.native.primitives import fits, is_bf16
from hcmegatron.kernels.torch_hyper import Norm


class _Made(NamedTuple):
    """What a read has computed: what C keeps for its backward, and what torch_hyper.read returns."""

    kept: Tensor
    mix: Tensor
    carry: Tensor
    post: Tensor
    x: Tensor


class _Read(Function):
    """As torch_hyper's, given what the read has computed."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx,
        norm: Norm,
        made: _Made,
        H: Tensor,
        weight: Tensor | None,
        s_a: Tensor,
        s_b: Tensor,
        *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(H, weight, made.kept, made.mix, s_a, s_b, *parts)
        ctx.norm = norm
        ctx.set_materialize_grads(False)
        return made.mix, made.carry, made.post, made.x, H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: FunctionCtx, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        H, weight, kept, mix, *parameters = ctx.saved_tensors
        W, static, norm = parameters[5:], parameters[2:5], ctx.norm
        T, n, C, m = _sizes(H, static, W)
        given = tuple(None if each is None else each.contiguous() for each in given)
        out, scratch = torch.empty_like(H), kept.new_empty((m + n + 1) * C)
        dweight = None if weight is None else torch.empty_like(weight)
        made = [torch.empty_like(each) for each in parameters]
        read = (H, weight, *parameters[:2], *_three(W), kept, mix, *given)
        written = (out, scratch, dweight, *made[:5], *_three(made[5:]))
        function("hyper_read_backward", n)(
            *map(address, (*read, *written)), T, C, *_columns(W), norm.centring, norm.tanh, m, is_bf16(H)
        )
        return None, None, out, dweight, *made


def _sizes(H: Tensor, static: Sequence[Tensor], W: Sequence[Tensor]) -> tuple[int, int, int, int]:
    """T, n, the width of a stream or fraction, and m."""
    n = len(static[0])
    return H.shape[:-2].numel(), n, len(W[0]), static[0].numel() // n


def _three(parts: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return (*parts, None)[:3]


def _columns(W: Sequence[Tensor]) -> tuple[int, int]:
    """Of the first two of W's parts [C] or [C,k]."""
    return W[0].numel() // len(W[0]), W[1].numel() // len(W[1])


def _read(
    H: Tensor, weight: Tensor | None, norm: Norm, s_a: Tensor, s_b: Tensor, *parts: Tensor
) -> _Made | None:
    """None where the squares of streams leave what is ordinary (torch_rms). All contiguous."""
    static, W, lead = parts[:3], parts[3:], H.shape[:-2]
    T, n, C, m = _sizes(H, static, W)
    K = m + n + 1
    shapes = (K * C + T * n * (K + 1),), (*lead, *static[0].shape[::-1]), (*lead, n, n), (*lead, n)
    made = _Made(*(s_a.new_empty(shape) for shape in shapes), H.new_empty((*lead, m * C)))
    pointers = map(address, (H, weight, s_a, s_b, *static, *_three(W), *made))
    failed = function("hyper_read", n)(
        *pointers, T, C, *_columns(W), norm.eps, norm.centring, norm.tanh, m, is_bf16(H)
    )
    return None if failed else made


def read(
    H: Tensor,
    static: Sequence[Tensor],
    W: Sequence[Tensor],
    scales: tuple[Tensor, Tensor],
    weight: Tensor | None,
    norm: Norm,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """torch_hyper.read."""
    n = len(static[0])
    if fits(H, n, static[0]) and static[0].numel() in (n, n * n):
        H = H.contiguous()
        weight = None if weight is None else weight.contiguous()
        parts = [each.contiguous() for each in (*scales, *static, *W)]
        made = _read(H, weight, norm, *parts)
        if made is not None:
            mix, carry, post, x, H = _Read.apply(norm, made, H, weight, *parts)
            return mix, carry, post, x, H
    return torch_hyper.read(H, static, W, scales, weight, norm)
