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
from hcmegatron.kernels.native.primitives import is_bf16, of_streams
from hcmegatron.kernels.torch_hyper import Norm


class _Made(NamedTuple):
    """What a read has computed: z [T,K,n], the projections before the tanh; inverse [T,n], 1 / rms; its outputs mix
    [T,m,n], carry [T,n,n], post [T,n] and x [T,m,C]; and W times the norm's weight, [K,C]."""

    z: Tensor
    inverse: Tensor
    mix: Tensor
    carry: Tensor
    post: Tensor
    x: Tensor
    weighed: Tensor


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
        ctx.save_for_backward(H, weight, s_a, s_b, made.z, made.inverse, made.mix, made.weighed, *parts)
        ctx.norm = norm
        ctx.set_materialize_grads(False)
        return made.mix, made.carry, made.post, made.x, H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: FunctionCtx, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        H, weight, s_a, s_b, z, inverse, mix, weighed, *parts = ctx.saved_tensors
        (T, n, C), K, m, norm = H.shape, len(weighed), mix.shape[1], ctx.norm
        given = tuple(None if each is None else each.contiguous() for each in given)
        out, dW = torch.empty_like(H), torch.zeros_like(weighed)
        dstatic, dscale = z.new_empty(K, n), z.new_empty(2)
        pointers = map(address, (H, weighed, s_a, s_b, z, inverse, mix, *given, out, dW, dstatic, dscale))
        function("hyper_read_backward", n)(*pointers, T, C, norm.centring, norm.tanh, m, is_bf16(H))
        dweight, of_W = torch_hyper.unweighed(dW.mT, torch_hyper.columns(parts[3:]), weight)
        of_parts = *torch_hyper.as_parts(dstatic.mT, parts[:3]), *torch_hyper.as_parts(of_W, parts[3:])
        return None, None, out, dweight, *dscale.split(1), *of_parts


def _read(
    H: Tensor,
    static: Tensor,
    W: Tensor,
    scales: tuple[Tensor, Tensor],
    weight: Tensor | None,
    norm: Norm,
) -> _Made | None:
    """With static [n,K] and W [C,K]; None where the squares of streams leave what is ordinary (torch_rms)."""
    (T, n, C), K = H.shape, W.shape[1]
    m = K - n - 1
    weighed = (W if weight is None else weight.unsqueeze(1) * W).mT.contiguous()
    shapes = ((T, K, n), (T, n), (T, m, n), (T, n, n), (T, n))
    found = [static.new_empty(shape) for shape in shapes]
    x = H.new_empty(T, m, C)
    failed = function("hyper_read", n)(
        *map(address, (H, weighed, static, *scales, *found, x)),
        T,
        C,
        norm.eps,
        norm.centring,
        norm.tanh,
        m,
        is_bf16(H),
    )
    return None if failed else _Made(*found, x, weighed)


def read(
    H: Tensor,
    static: Sequence[Tensor],
    W: Sequence[Tensor],
    scales: tuple[Tensor, Tensor],
    weight: Tensor | None,
    norm: Norm,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """torch_hyper.read."""
    H = H.contiguous()
    if of_streams(H, static[0]) and static[0].shape in ((H.shape[1],), (H.shape[1], H.shape[1])):
        with torch.no_grad():
            made = _read(H, torch_hyper.columns(static), torch_hyper.columns(W), scales, weight, norm)
        if made is not None:
            mix, carry, post, x, H = _Read.apply(norm, made, H, weight, *scales, *static, *W)
            return mix, carry, post, x, H
    return torch_hyper.read(H, static, W, scales, weight, norm)
