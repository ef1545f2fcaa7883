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
    """What a read has computed: W times the norm's weight, [K,C]; z [T,K,n], the projections before the tanh; inverse
    [T,n], 1 / rms; and what torch_hyper.read returns."""

    weighed: Tensor
    z: Tensor
    inverse: Tensor
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
        ctx.save_for_backward(H, weight, s_a, s_b, made.weighed, made.z, made.inverse, made.mix, *parts)
        ctx.norm = norm
        ctx.set_materialize_grads(False)
        return made.mix, made.carry, made.post, made.x, H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: FunctionCtx, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        H, weight, s_a, s_b, weighed, z, inverse, mix, *parts = ctx.saved_tensors
        (T, K, n), C, norm = z.shape, weighed.shape[1], ctx.norm
        given = tuple(None if each is None else each.contiguous() for each in given)
        out, dweighed = torch.empty_like(H), torch.zeros_like(weighed)
        dweight = None if weight is None else torch.zeros_like(weight)
        made = [torch.empty_like(each) for each in (s_a, s_b, *parts)]
        fixed, W = _three(parts[3:]), _three(made[5:])
        pointers = (
            H,
            weight,
            s_a,
            s_b,
            *fixed,
            weighed,
            z,
            inverse,
            mix,
            *given,
            out,
            dweighed,
            dweight,
            *made[:5],
            *W,
        )
        function("hyper_read_backward", n)(
            *map(address, pointers),
            T,
            C,
            *_columns(parts[3:]),
            norm.centring,
            norm.tanh,
            K - n - 1,
            is_bf16(H),
        )
        return None, None, out, dweight, *made


def _three(parts: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return (*parts, None)[:3]


def _columns(W: Sequence[Tensor]) -> tuple[int, int]:
    """Of the first two of W's parts [C] or [C,k]."""
    return W[0].numel() // len(W[0]), W[1].numel() // len(W[1])


def _read(
    H: Tensor, weight: Tensor | None, norm: Norm, s_a: Tensor, s_b: Tensor, *parts: Tensor
) -> _Made | None:
    """None where the squares of streams leave what is ordinary (torch_rms). All contiguous."""
    static, W = parts[:3], parts[3:]
    lead, n, C = H.shape[:-2], len(parts[0]), len(parts[3])
    T, m = lead.numel(), parts[0].numel() // n
    K, like = m + n + 1, parts[0]
    shapes = (K, C), (T, K, n), (T, n), (*lead, *static[0].shape[::-1]), (*lead, n, n), (*lead, n)
    made = _Made(*(like.new_empty(shape) for shape in shapes), H.new_empty(*lead, m * C))
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
        made = _read(H.detach(), weight, norm, *parts)
        if made is not None:
            mix, carry, post, x, H = _Read.apply(norm, made, H, weight, *parts)
            return mix, carry, post, x, H
    return torch_hyper.read(H, static, W, scales, weight, norm)
