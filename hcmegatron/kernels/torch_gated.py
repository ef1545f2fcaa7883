"""The gated residual's read (2608.30320) for torch, with backward by hand.

Rh_i = gamma_i R_i / rms(R_i); G = sigmoid(SiLU(vec(Rh) W_d / n) W_u); x = mean_i G_i * Rh_i; and s = 2 sigmoid(vec(Rh)
W_w / n). Of what is as wide as the streams only the streams are kept; normed streams and gates are made again in
backward. Everything is computed in the projections' precision and rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import torch_rms
from hcmegatron.kernels.autocast import without_autocast


def inverse_rms(R: Tensor, eps: float) -> tuple[Tensor, Tensor | None]:
    """1 / sqrt(mean square + eps) of every stream of R [T,n,C] -> [T,n]; 0 for zeros without epsilon.

    Also what rms.scaling says that streams have to be multiplied by: 1 / rms is that of the products.
    """
    r = torch_rms.root_mean_square(R)
    shift = torch_rms.scaling(r, R, eps**0.5)
    if shift is None:
        return r.square_().add_(eps).rsqrt_(), None
    square = torch_rms.root_mean_square(R * shift.unsqueeze(-1)).square_() + eps * shift * shift
    return torch.where(square == 0, 0, square.rsqrt()), shift


def units(R: Tensor, inverse: Tensor, shift: Tensor | None) -> Tensor:
    """Streams [T,n,C] over their root mean squares."""
    return (R if shift is None else R * shift.unsqueeze(-1)) * inverse.unsqueeze(-1)


def thin(a: Tensor, b: Tensor) -> Tensor:
    """a b for a b of few columns: torch takes a fifth of the time where they are rows."""
    return torch.mm(b.mT, a.mT).mT


def logits(p: Tensor, W_u: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU of the first r of p [T, r + n], and the logits of G [T,nC]."""
    hidden = torch.nn.functional.silu(p[:, : len(W_u)])
    return hidden, torch.mm(hidden, W_u)


def projections_pullback(
    p: Tensor, s: Tensor, hidden: Tensor, dlogits: Tensor, ds: Tensor | None, W_u: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of p [T, r + n] and of W_u, from those of the gates' logits [T,nC] and of s [T,n].

    hidden is SiLU of the first r of p.
    """
    z = p[:, : len(W_u)]
    half = torch.sigmoid(z)
    dz = thin(dlogits, W_u.mT).mul_(half.addcmul(hidden, 1 - half))  # SiLU' = sigmoid + SiLU (1 - sigmoid)
    dq = torch.zeros_like(s) if ds is None else ds * s * (1 - s / 2)
    return torch.cat([dz, dq], 1), torch.mm(hidden.mT, dlogits)


class _Read(Function):
    """(R, gamma, W_d, W_u, W_w) -> (x, s, the gates' means, R again): as torch_path's, R is handed through."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx, R: Tensor, gamma: Tensor, W_d: Tensor, W_u: Tensor, W_w: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        T, n, C = R.shape
        Rc = R.to(gamma.dtype)
        inverse, shift = inverse_rms(Rc, eps)
        Rh = units(Rc, inverse, shift).mul_(gamma)
        p = thin(Rh.view(T, n * C), torch.cat([W_d, W_w], 1)).contiguous().div_(n)
        G = logits(p, W_u)[1].sigmoid_().view(T, n, C)
        s = torch.sigmoid(p[:, len(W_u) :]).mul_(2)
        ctx.save_for_backward(R, gamma, W_d, W_u, W_w, inverse, shift, p)
        ctx.set_materialize_grads(False)
        shares = G.mean(-1).div_(n)
        ctx.mark_non_differentiable(shares)
        x = Rh[:, 0] * G[:, 0]
        for i in range(1, n):  # products of all streams at once would be written and read again
            x.addcmul_(Rh[:, i], G[:, i])
        return x.div_(n).to(R.dtype), s, shares, R.view_as(R)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx, dx: Tensor | None, ds: Tensor | None, _: None, dR: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        R, gamma, W_d, W_u, W_w, inverse, shift, p = ctx.saved_tensors
        T, n, C = R.shape
        dx = R.new_zeros(T, C, dtype=gamma.dtype) if dx is None else dx.to(gamma.dtype)
        unit = units(R.to(gamma.dtype), inverse, shift)
        Rh = unit * gamma
        hidden, G = logits(p, W_u)
        G = G.sigmoid_().view(T, n, C)
        d = G * (dx / n).unsqueeze(1)  # of Rh
        dlogits = d * Rh
        dlogits = dlogits.addcmul_(dlogits, G, value=-1).view(T, n * C)
        s = torch.sigmoid(p[:, len(W_u) :]).mul_(2)
        dp, dW_u = projections_pullback(p, s, hidden, dlogits, ds, W_u)
        dp.div_(n)
        dW = thin(Rh.view(T, n * C).mT, dp)
        d.view(T, n * C).addmm_(dp, torch.cat([W_d, W_w], 1).mT)
        own = d * unit
        dgamma = own.sum(0)
        along = torch.bmm(gamma.unsqueeze(1), own.permute(1, 2, 0)).permute(2, 0, 1).div_(-C)  # [T,n,1]
        d.mul_(gamma).addcmul_(unit, along)
        by = (inverse if shift is None else inverse * shift).unsqueeze(-1)
        d = d.mul_(by) if dR is None else torch.addcmul(dR.to(d.dtype), d, by)
        dW_d, dW_w = dW.split([W_d.shape[1], n], 1)
        return d.to(R.dtype), dgamma, dW_d, dW_u, dW_w, None


def read(
    R: Tensor, gamma: Tensor, W_d: Tensor, W_u: Tensor, W_w: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gated residual's read. R [T,n,C] of any float dtype; gamma [n,C], W_d [nC,r], W_u [r,nC] and W_w [nC,n] fp32
    (fp64 with fp64 streams); eps is added to the mean square.

    Returns x [T,C] in R's dtype; s [T,n] and the gates' means over C, divided by n [T,n], which carry no gradient, in
    gamma's; and R again, for the write to use.
    """
    return _Read.apply(R.contiguous(), gamma, W_d, W_u, W_w, eps)
