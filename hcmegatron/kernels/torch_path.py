"""mHC's read and every connection's write for torch, with backward by hand: the path of CPUs and of GPUs
without Triton.

Autograd through the plain formulas keeps several stream-wide tensors per sub-layer and walks the streams once
for each of its steps. Here a read keeps the streams, which something else keeps anyway, and K + 1 numbers a
token; a write keeps the streams, y and the coefficients. Everything is summed in the coefficients' precision
and rounded once. What read and write are made of is torch_primitives.Primitives, or compiled (native/primitives.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hcmegatron.kernels import torch_rms
from hcmegatron.kernels.autocast import without_autocast
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.torch_primitives import Primitives

_BY_TORCH = Primitives()


def inverse_rms(Hv: Tensor, options: ReadOptions) -> tuple[Tensor, Tensor | None]:
    """1 / r of Eq. 15 for Hv [T, nC] -> [T]; 0 for a token of zeros without epsilon, which has no direction.

    Also what rms.scaling says that tokens have to be multiplied by: 1 / r is that of the products. Where there is no
    division it is 1, and tokens are taken as they are.
    """
    if options.rms_eps == "off":
        return Hv.new_ones(len(Hv)), None
    r = torch_rms.root_mean_square(Hv)
    shift = torch_rms.scaling(r, Hv, options.floor)
    if shift is not None:
        r = torch_rms.root_mean_square(_times(Hv, shift))
    eps = options.eps if shift is None else options.eps * shift
    if options.rms_eps == "inside":
        square = r.square_().add_(eps if shift is None else eps * shift)
        return torch.where(square == 0, 0, square.rsqrt()), shift
    if options.rms_eps == "added":
        r = r + eps
    return torch.where(r == 0, 0, r.reciprocal()), shift


def rms_pullback(
    dt_t: Tensor, inv_r: Tensor, shift: Tensor | None, width: int, options: ReadOptions
) -> Tensor:
    """The factor c [T] of dHv += c Hv by which 1 / r pulls back; dt_t [T] is sum_k dt t, width is nC.

    Hv, its gradient and 1 / r are those of tokens multiplied by shift.
    """
    if options.rms_eps == "off":
        return torch.zeros_like(inv_r)
    if options.rms_eps != "added":
        return dt_t * inv_r.square() / -width
    r = inv_r.reciprocal() - (options.eps if shift is None else options.eps * shift)
    return torch.where((r <= 0) | (inv_r == 0), 0, dt_t * inv_r / (r * -width))


class _Read(Function):
    """(H, phi, scale, bias, mix) -> (x, pre, post, res, H again), x by the mix, or by pre where there is none.

    H is handed through so that the gradient of its other use, the write, arrives here and the streams get one
    gradient instead of two that autograd would add.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        phi: Tensor,
        scale: Tensor,
        bias: Tensor,
        mix: Tensor | None,
        options: ReadOptions,
        primitives: Primitives,
    ) -> tuple[Tensor, ...]:
        T, n, C = H.shape
        Hc = H.to(phi.dtype)
        Hv = Hc.view(T, n * C)
        inv_r, shift = inverse_rms(Hv, options)
        t = torch.mm(phi.mT, _times(Hv, shift).mT).mul_(inv_r)
        pre, post, res = primitives.coefficients(t, scale, bias, options)  # the write keeps them too
        by = pre if mix is None else mix
        x = primitives.aggregate(H, Hc, by)
        kept = res if options.implicit else None
        ctx.save_for_backward(H, phi, scale, bias, t, inv_r, shift, by, kept)
        ctx.options, ctx.primitives, ctx.mixed = options, primitives, mix is not None
        ctx.set_materialize_grads(False)
        return x, pre, post, res, H.view_as(H)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx,
        dx: Tensor | None,
        dpre: Tensor | None,
        dpost: Tensor | None,
        dres: Tensor | None,
        dH: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        H, phi, scale, bias, t, inv_r, shift, by, res = ctx.saved_tensors
        T, n, C = H.shape
        options, primitives = ctx.options, ctx.primitives
        Hc = H.to(phi.dtype)
        Hv = _times(Hc.view(T, n * C), shift)
        dx = H.new_zeros(T, C) if dx is None else dx
        through_x = primitives.aggregate_backward(H, Hc, dx)
        dmix = through_x if ctx.mixed else None
        if not ctx.mixed:
            dpre = through_x if dpre is None else through_x + dpre
        dt, dscale, dbias, dt_t = primitives.coefficients_backward(
            t, scale, bias, dpre, dpost, dres, res, options
        )
        c = rms_pullback(dt_t, inv_r, shift, n * C, options)
        dp = dt.mul_(inv_r)
        dphi = torch.mm(dp, Hv).mT  # half the time of Hv.mT dp.mT; of K = 24 the same bits, too
        if shift is not None:
            dp, c = dp * shift, c * shift
            primitives = _BY_TORCH  # of tokens that are multiplied; there are next to none
        dstreams = primitives.streams_backward(H, Hv, dH, dp, phi, c, by, dx)
        return dstreams, dphi, dscale, dbias, dmix, None, None


def _times(Hv: Tensor, shift: Tensor | None) -> Tensor:
    """Hv [T, nC] with every token multiplied by its shift [T]."""
    return Hv if shift is None else Hv * shift.unsqueeze(1)


class _Write(Function):
    """(H [T,n,C], y [T,1 or n,C], post [T,n], res [T,n,n]) -> H'_o = sum_i res[o,i] H_i + post[o] y_o.

    Without res the carry is the identity: H is not kept, and its gradient is that of H'.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx, H: Tensor, y: Tensor, post: Tensor, res: Tensor | None, primitives: Primitives
    ) -> Tensor:
        ctx.save_for_backward(None if res is None else H, y, post, res)
        ctx.primitives = primitives
        return primitives.write(H, y, post, res)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: FunctionCtx, dout: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.primitives.write_backward(*ctx.saved_tensors, dout, ctx.needs_input_grad), None


def read(
    H: Tensor,
    phi: Tensor,
    scale: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor],
    options: ReadOptions,
    mix: Tensor | None = None,
    *,
    primitives: Primitives = _BY_TORCH,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mHC's read. H [T,n,C] of any float dtype; phi [nC,K], scale [K], bias [K] fp32 (fp64 with fp64
    streams).

    Scale and bias may also come as their parts for pre, post and res, of those that phi predicts, in this order:
    biases [n], [n] and [n*n]; scales alike, or all [1], one number for all columns of a part (the alphas).

    mix [T,n], fp32 or fp64 as phi: x = sum_i mix[i] H_i instead of by the pre that is predicted (single-pass mHC).
    primitives: what computes them.

    Returns x [T,C] in H's dtype; pre [T,n], post [T,n], res [T,n,n] in phi's; and H again, for the write to
    use.
    """
    if not isinstance(bias, Tensor):
        scale = torch.cat([s.expand(len(b)) for s, b in zip(scale, bias, strict=True)])
        bias = torch.cat(list(bias))
    return _Read.apply(H.contiguous(), phi, scale, bias, mix, options, primitives)


def write(
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor | None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    *,
    primitives: Primitives = _BY_TORCH,
) -> Tensor:
    """H'_o = sum_i res[o,i] H_i + post[o] dropout(y + bias)_o, in H's dtype.

    H [T,n,C]; y [T,1,C], the same for all streams, or [T,n,C], a part for each (FC); post [T,n], res [T,n,n] or
    None, the identity; bias of y's shape without T. primitives: what computes it.
    """
    if bias is not None or dropout:
        y = y.to(post.dtype)  # what is made of y and its gradient is rounded at the end, not at every step
    if bias is not None:
        y = y + bias
    if dropout:
        y = F.dropout(y, dropout)
    # Of coefficients that are the same for all tokens, with strides of 0, bmm would go token by token.
    res = None if res is None else res.contiguous()
    return _Write.apply(H.contiguous(), y, post.contiguous(), res, primitives)
