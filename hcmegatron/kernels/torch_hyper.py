"""The reads of HC and FC for torch, with backward by hand: coefficients from normalised streams, and streams mixed.

Autograd through the plain formulas keeps and walks several tensors as wide as the streams. Here a read hands the
streams on, so that they get one gradient, rounded once, keeps them alone of what is wide, and normalises after the
projection: of z = inv W^T (x - mean) there is nothing as wide as a stream but x - mean, which lives for the call.
Products have tokens last: with a handful of columns torch takes a fifth of the time so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hcmegatron.kernels import torch_path, torch_rms
from hcmegatron.kernels.autocast import without_autocast


class Norm(NamedTuple):
    """In front of the predictors, and what follows them.

    Attributes:
        centring: it is a LayerNorm, otherwise an RMSNorm.
        eps: added to the mean square.
        tanh: whether there is one.
    """

    centring: bool
    eps: float
    tanh: bool


def _centred(x: Tensor, norm: Norm) -> Tensor:
    return x - x.mean(-1, keepdim=True) if norm.centring else x


def _normalised(x: Tensor, norm: Norm) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of streams x [T,n,C]: what is divided by its root mean square, 1 / that [T,n], and the powers of two [T,n] that
    the streams were multiplied by before; None where all are fine as they are (torch_rms)."""
    centred = _centred(x, norm)
    root = torch_rms.root_mean_square(centred)
    shift = torch_rms.scaling(root, x, norm.eps**0.5)
    if shift is None:
        inverse = root.square_().add_(norm.eps).rsqrt_()
    else:
        centred = _centred(x * shift.unsqueeze(-1), norm)
        square = centred.square().mean(-1) + norm.eps * shift * shift
        inverse = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).rsqrt())
    return centred, inverse, shift


def by_streams(H: Tensor, n: int) -> Tensor:
    """Streams [..., w, C], w = n, or the one stream of n fractions, w = 1: [T,n,C or C/n]."""
    *lead, w, C = H.shape
    return H.reshape(math.prod(lead), n, w * C // n)


def columns(parts: Sequence[Tensor]) -> Tensor:
    """Parts [R] or [R,k] side by side: [R,K]."""
    return torch.cat([part.view(len(part), -1) for part in parts], 1)


def as_parts(packed: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """What `columns` put together [R,K] taken apart again."""
    taken = packed.split([part.numel() // len(part) for part in parts], 1)
    return [each.view(part.shape) for each, part in zip(taken, parts, strict=True)]


class _Read(Function):
    """(H, weight, s_a, s_b, 3 static, projections) -> (mix, carry, post, x, H again): see `read`."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx,
        norm: Norm,
        H: Tensor,
        weight: Tensor | None,
        s_a: Tensor,
        s_b: Tensor,
        *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        static, W = columns(parts[:3]), columns(parts[3:])
        Hc = by_streams(H, len(static)).to(W.dtype)
        (T, n, C), K = Hc.shape, W.shape[1]
        m = K - n - 1
        centred, inverse, shift = _normalised(Hc, norm)
        z = torch.mm(_weighed(W, weight).mT, centred.view(T * n, C).mT).view(K, T, n) * inverse
        p, scale = torch.tanh(z) if norm.tanh else z, torch.cat([s_a.expand(K - 1), s_b])
        found = torch.addcmul(static.mT.unsqueeze(1), scale.view(K, 1, 1), p)
        rows = (
            each.transpose(0, 1) for each in found.split([m, n, 1])
        )  # of one row a view, which would keep all
        mix, carry, post = (each.clone(memory_format=torch.contiguous_format) for each in rows)
        ctx.save_for_backward(H, weight, scale, W, inverse, shift, z, mix, *parts)
        ctx.norm = norm
        ctx.set_materialize_grads(False)
        lead, x = H.shape[:-2], torch.bmm(mix, Hc).to(H.dtype)
        found = mix.view(*lead, *parts[0].shape[::-1]), carry.view(*lead, n, n), post.view(*lead, n)
        return *found, x.view(*lead, m * C), H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx,
        dmix: Tensor | None,
        dcarry: Tensor | None,
        dpost: Tensor | None,
        dx: Tensor | None,
        dH: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        H, weight, scale, W, inverse, shift, z, mix, *parts = ctx.saved_tensors
        (K, T, n), m, norm, dtype = z.shape, mix.shape[1], ctx.norm, W.dtype
        Hc = by_streams(H, n).to(dtype)
        C = Hc.shape[-1]
        given = torch.zeros_like(z)
        dx = None if dx is None else dx.to(dtype).reshape(T, m, C)
        through_x = None if dx is None else torch.bmm(dx, Hc.mT)
        for rows, found in (
            (given[:m], dmix),
            (given[:m], through_x),
            (given[m:-1], dcarry),
            (given[-1:], dpost),
        ):
            if found is not None:
                rows.add_(found.reshape(T, len(rows), n).transpose(0, 1))
        p = torch.tanh(z) if norm.tanh else z
        dscale, dz = (given * p).sum((1, 2)), given * scale.view(K, 1, 1)
        if norm.tanh:
            dz = dz.addcmul_(dz, p.square(), value=-1)
        centred = _centred(Hc if shift is None else Hc * shift.unsqueeze(-1), norm).view(T * n, C)
        along = (dz * z).sum(0) * inverse.square() / -C  # of x - mean in its own gradient
        rows, weighed = (dz * inverse).view(K, T * n), _weighed(W, weight)
        dW = torch.mm(rows, centred).mT
        if norm.centring:  # the mean of what comes through the products goes back out of them
            means = torch.mv(rows.mT, weighed.mean(0)).neg_()
            rows, weighed = torch.cat([rows, means.unsqueeze(0)]), F.pad(weighed, (0, 1), value=1.0)
        if shift is not None:
            rows, along = rows * shift.view(-1), along * shift
        if dH is None:
            out = torch.mm(rows.mT, weighed.mT)
        else:
            out = torch.addmm(dH.to(dtype).reshape(T * n, C), rows.mT, weighed.mT)
        out = out.addcmul_(centred, along.view(-1, 1)).view(T, n, C)
        if dx is not None:
            out.baddbmm_(mix.mT, dx)
        dweight, dW = unweighed(dW, W, weight)
        of_static, of_W = as_parts(given.sum(1).mT, parts[:3]), as_parts(dW, parts[3:])
        of_scales = dscale[:-1].sum().view(1), dscale[-1:]
        return None, out.to(H.dtype).view(H.shape), dweight, *of_scales, *of_static, *of_W


def _weighed(W: Tensor, weight: Tensor | None) -> Tensor:
    return W if weight is None else weight.unsqueeze(1) * W


def unweighed(dW: Tensor, W: Tensor, weight: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """From the gradient of weight W, those of weight [C] and of W [C,K]."""
    return (None, dW) if weight is None else ((dW * W).sum(1), weight.unsqueeze(1) * dW)


def read(
    H: Tensor,
    static: Sequence[Tensor],
    W: Sequence[Tensor],
    scales: tuple[Tensor, Tensor],
    weight: Tensor | None,
    norm: Norm,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Coefficients static[i,k] + scale_k tanh(norm(H_i) W_k) of every token, stream i and column k (HC, Eq. 10-13), and
    the streams mixed by the first m columns.

    Of HC m is 1, of FC n. Streams and parameters come as connections hold them, so that between them and this there is
    nothing for autograd to follow.

    Args:
        H: [..., n,C], or of FC [..., 1,C] of n fractions (below C is a fraction's width); of any float dtype, all else
            in fp32 (fp64 with fp64 streams).
        static: A_m [n] or Y [n,m], A_r [n,n], B [n].
        W: [C] or [C,k], their projections: K = m + n + 1 columns in all, in the same order.
        scales: s_a and s_b [1], of which s_b is the last column's.
        weight: of the norm, [C], or None.
        norm: what kind it is.

    Returns:
        The coefficients transposed, mix [..., n] (HC) or [..., m,n], carry [..., n,n] and post [..., n], contiguous, in
        W's dtype; x [..., m C] in H's; and H again, for the write to use.
    """
    mix, carry, post, x, H = _Read.apply(norm, H.contiguous(), weight, *scales, *static, *W)
    return mix, carry, post, x, H


class _Mix(Function):
    """(H, mix) -> (mix H, H again)."""

    @staticmethod
    @without_autocast
    def forward(ctx: FunctionCtx, H: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(H, mix)
        ctx.set_materialize_grads(False)
        return torch.bmm(mix, H.to(mix.dtype)).to(H.dtype), H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx, dx: Tensor | None, dH: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        H, mix = ctx.saved_tensors
        if dx is None:
            return dH, None
        d = dx.to(mix.dtype).contiguous()
        dmix = torch.bmm(d, H.to(mix.dtype).mT)
        if dH is None:
            out = torch.bmm(mix.mT, d)
        else:
            out = torch.baddbmm(dH.to(mix.dtype), mix.mT, d)
        return out.to(H.dtype), dmix


def mix(H: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """A static read: x [T,m,C] = sum_i by[.,i] H_i in H's dtype, of streams H [T,n,C] and by [T,m,n]; and H again."""
    # of a matrix that is the same for all tokens, with strides of 0, bmm would go token by token
    return _Mix.apply(H.contiguous(), by.contiguous())


def static_read(H: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., m C] by A_m [n] or Y [n,m], which are the same for all tokens, and H again; H as `read`'s."""
    n, lead = len(by), H.shape[:-2]
    streams = by_streams(H, n)
    x, streams = mix(streams, by.view(n, -1).mT.expand(len(streams), -1, n))
    return x.reshape(*lead, x.shape[1] * x.shape[2]), streams.view(H.shape)


def write(
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    *,
    by: Callable[..., Tensor] = torch_path.write,
) -> Tensor:
    """H'_o = sum_i res[o,i] H_i + post[o] dropout(y + bias), of FC with the o-th part of that.

    H and H' as `read`'s; y [..., C], bias [C]; post [..., n] and res [..., n,n], or [n] and [n,n], the same for all
    tokens. by: a write of torch_path's signature.
    """
    n, streams = post.shape[-1], by_streams(H, post.shape[-1])
    T, _, width = streams.shape
    parts = y.reshape(T, y.shape[-1] // width, width)
    bias = None if bias is None else bias.view(parts.shape[1:])
    post, res = (each.expand(*H.shape[:-2], *each.shape[-k:]) for k, each in ((1, post), (2, res)))
    return by(streams, parts, post.reshape(T, n), res.reshape(T, n, n), bias, dropout).view(H.shape)
