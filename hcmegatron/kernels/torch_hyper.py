"""The reads of HC and FC for torch, with backward by hand: coefficients from normalised streams, and streams mixed.

Autograd through the plain formulas keeps and walks several tensors as wide as the streams. Here both functions hand the
streams on, so that they get one gradient, keep them alone of what is wide, and normalise after the projection: of what
is normalised, z = inv W^T (x - mean), there is nothing as wide as a stream but x - mean, which lives for the call.
Products have tokens last: with a handful of columns torch takes a fifth of the time so.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import torch_gated


def _centred(x: Tensor, centring: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centring else x


def _normalised(x: Tensor, centring: bool, eps: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of streams x [T,n,C]: what is divided by its root mean square, 1 / that [T,n], and the powers of two [T,n] that
    the streams were multiplied by before; None where all are fine as they are (torch_rms)."""
    centred = _centred(x, centring)
    inverse, shift = torch_gated.inverse_rms(centred, eps)
    if shift is not None:
        centred = _centred(x * shift.unsqueeze(-1), centring)
        square = centred.square().mean(-1) + eps * shift * shift
        inverse = torch.where(square == 0, 0.0, torch.where(square == 0, 1.0, square).rsqrt())
    return centred, inverse, shift


class _Coefficients(Function):
    """(H, static, scale, weight, W) -> ([T,K,n], H again): see `coefficients`."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        static: Tensor,
        scale: Tensor,
        weight: Tensor | None,
        W: Tensor,
        centring: bool,
        eps: float,
        tanh: bool,
    ) -> tuple[Tensor, Tensor]:
        (T, n, C), K = H.shape, W.shape[1]
        centred, inverse, shift = _normalised(H.to(W.dtype), centring, eps)
        z = torch.mm(_weighed(W, weight).mT, centred.view(T * n, C).mT).view(K, T, n) * inverse
        p = torch.tanh(z) if tanh else z
        found = torch.addcmul(static.unsqueeze(1), scale.view(K, 1, 1), p)
        ctx.save_for_backward(H, scale, weight, W, inverse, shift, z)
        ctx.norm, ctx.tanh = (centring, eps), tanh
        ctx.set_materialize_grads(False)
        return found.transpose(0, 1).contiguous(), H.view_as(H)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, given: Tensor | None, dH: Tensor | None) -> tuple[Tensor | None, ...]:
        H, scale, weight, W, inverse, shift, z = ctx.saved_tensors
        if given is None:
            return dH, None, None, None, None, None, None, None
        (T, n, C), K = H.shape, W.shape[1]
        p = torch.tanh(z) if ctx.tanh else z
        given = given.transpose(0, 1).contiguous()
        dscale = (given * p).sum((1, 2))
        dz = given * scale.view(K, 1, 1)
        if ctx.tanh:
            dz = dz.addcmul_(dz, p.square(), value=-1)
        x = H.to(W.dtype)
        centred = _centred(x if shift is None else x * shift.unsqueeze(-1), ctx.norm[0]).view(T * n, C)
        by = (dz * z).sum(0) * inverse.square() / -C  # of x - mean in its own gradient
        dq = (dz * inverse).view(K, T * n)
        dW = torch.mm(dq, centred).mT
        whole = _weighed(W, weight)
        rows, columns = dq, whole
        if ctx.norm[0]:  # the mean of what comes through the products goes back out of them
            rows = torch.cat([dq, -torch.mv(dq.mT, whole.mean(0)).unsqueeze(0)])
            columns = torch.cat([whole, whole.new_ones(C, 1)], 1)
        if shift is not None:
            rows, by = rows * shift.view(-1), by * shift
        if dH is None:
            out = torch.mm(rows.mT, columns.mT)
        else:
            out = torch.addmm(dH.to(W.dtype).reshape(T * n, C), rows.mT, columns.mT)
        out = out.addcmul_(centred, by.view(-1, 1)).view(T, n, C).to(H.dtype)
        dweight = None if weight is None else (dW * W).sum(1)
        return out, given.sum(1), dscale, dweight, _weighed(dW, weight), None, None, None


def _weighed(W: Tensor, weight: Tensor | None) -> Tensor:
    return W if weight is None else weight.unsqueeze(1) * W


def coefficients(
    H: Tensor,
    static: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    W: Tensor,
    *,
    centring: bool,
    eps: float,
    tanh: bool,
) -> tuple[Tensor, Tensor]:
    """static_k[i] + scale_k tanh(norm(H_i) W_k) of every token, stream i and coefficient k (HC, Eq. 10-13).

    Args:
        H: [T,n,C], of any float dtype; all else in fp32 (fp64 with fp64 streams).
        static: [K,n].
        scale: [K].
        weight: of the norm, [C], or None.
        W: [C,K].
        centring: the norm is a LayerNorm, otherwise an RMSNorm.
        eps: added to its mean square.
        tanh: whether there is one.

    Returns:
        [T,K,n], contiguous, in W's dtype; and H again, for the next to use.
    """
    return _Coefficients.apply(H.contiguous(), static, scale, weight, W, centring, eps, tanh)


class _Mix(Function):
    """(H, mix) -> (mix H, H again)."""

    @staticmethod
    def forward(ctx: FunctionCtx, H: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(H, mix)
        ctx.set_materialize_grads(False)
        return torch.bmm(mix, H.to(mix.dtype)).to(H.dtype), H.view_as(H)

    @staticmethod
    @once_differentiable
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
    """x [T,m,C] = sum_i by[.,i] H_i in H's dtype, of streams H [T,n,C] and by [T,m,n]; and H again."""
    # of a matrix that is the same for all tokens, with strides of 0, bmm would go token by token
    return _Mix.apply(H.contiguous(), by.contiguous())
