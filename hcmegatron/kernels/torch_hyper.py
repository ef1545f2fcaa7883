"""The reads of HC and FC for torch, with backward by hand: coefficients from normalised streams, and streams mixed.

Autograd through the plain formulas keeps and walks several tensors as wide as the streams. Here a read hands the
streams on, so that they get one gradient, rounded once, keeps them alone of what is wide, and normalises after the
projection: of z = inv W^T (x - mean) there is nothing as wide as a stream but x - mean, which lives for the call.
Products have tokens last: with a handful of columns torch takes a fifth of the time so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hcmegatron.kernels import torch_rms
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


class _Read(Function):
    """(H, static, scale, weight, W) -> (coefficients [T,K,n], x [T,m,C], H again): see `read`."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        static: Tensor,
        scale: Tensor,
        weight: Tensor | None,
        W: Tensor,
        norm: Norm,
        m: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (T, n, C), K = H.shape, W.shape[1]
        Hc = H.to(W.dtype)
        centred, inverse, shift = _normalised(Hc, norm)
        z = torch.mm(_weighed(W, weight).mT, centred.view(T * n, C).mT).view(K, T, n) * inverse
        p = torch.tanh(z) if norm.tanh else z
        found = torch.addcmul(static.unsqueeze(1), scale.view(K, 1, 1), p).transpose(0, 1).contiguous()
        by = found[:, :m].contiguous()
        ctx.save_for_backward(H, scale, weight, W, inverse, shift, z, by)
        ctx.norm = norm
        ctx.set_materialize_grads(False)
        return found, torch.bmm(by, Hc).to(H.dtype), H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx, dfound: Tensor | None, dx: Tensor | None, dH: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        H, scale, weight, W, inverse, shift, z, by = ctx.saved_tensors
        (T, n, C), (K, m), norm, dtype = H.shape, (len(scale), by.shape[1]), ctx.norm, W.dtype
        Hc = H.to(dtype)
        given = by.new_zeros(T, K, n) if dfound is None else dfound
        if dx is not None:
            dx = dx.to(dtype).contiguous()
            through_x = torch.bmm(dx, Hc.mT)
            given = torch.cat([given[:, :m] + through_x, given[:, m:]], 1)
        given = given.transpose(0, 1).contiguous()
        p = torch.tanh(z) if norm.tanh else z
        dscale, dz = (given * p).sum((1, 2)), given * scale.view(K, 1, 1)
        if norm.tanh:
            dz = dz.addcmul_(dz, p.square(), value=-1)
        centred = _centred(Hc if shift is None else Hc * shift.unsqueeze(-1), norm).view(T * n, C)
        along = (dz * z).sum(0) * inverse.square() / -C  # of x - mean in its own gradient
        rows, columns = (dz * inverse).view(K, T * n), _weighed(W, weight)
        dW = torch.mm(rows, centred).mT
        if norm.centring:  # the mean of what comes through the products goes back out of them
            means = torch.mv(rows.mT, columns.mean(0)).neg_()
            rows, columns = torch.cat([rows, means.unsqueeze(0)]), F.pad(columns, (0, 1), value=1.0)
        if shift is not None:
            rows, along = rows * shift.view(-1), along * shift
        if dH is None:
            out = torch.mm(rows.mT, columns.mT)
        else:
            out = torch.addmm(dH.to(dtype).reshape(T * n, C), rows.mT, columns.mT)
        out = out.addcmul_(centred, along.view(-1, 1)).view(T, n, C)
        if dx is not None:
            out.baddbmm_(by.mT, dx)
        dweight = None if weight is None else (dW * W).sum(1)
        return out.to(H.dtype), given.sum(1), dscale, dweight, _weighed(dW, weight), None, None


def _weighed(W: Tensor, weight: Tensor | None) -> Tensor:
    return W if weight is None else weight.unsqueeze(1) * W


def read(
    H: Tensor, static: Tensor, scale: Tensor, weight: Tensor | None, W: Tensor, norm: Norm, m: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients static_k[i] + scale_k tanh(norm(H_i) W_k) of every token, stream i and column k (HC, Eq. 10-13), and
    the streams mixed by the first m columns.

    Args:
        H: [T,n,C], of any float dtype; all else in fp32 (fp64 with fp64 streams).
        static: [K,n].
        scale: [K].
        weight: of the norm, [C], or None.
        W: [C,K].

    Returns:
        The coefficients [T,K,n], contiguous, in W's dtype; x [T,m,C] in H's; and H again, for the write to use.
    """
    return _Read.apply(H.contiguous(), static, scale, weight, W, norm, m)


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
