"""mHC's read and every connection's write for torch, with backward by hand: the path of CPUs and of GPUs
without Triton.

Autograd through the plain formulas keeps several stream-wide tensors per sub-layer and walks the streams once
for each of its steps. Here a read keeps the streams, which something else keeps anyway, and K + 1 numbers a
token; a write keeps the streams, y and the coefficients. Everything is summed in the coefficients' precision
and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from hcmegatron.kernels import torch_coefficients, torch_rms
from hcmegatron.kernels.options import ReadOptions


def inverse_rms(Hv: Tensor, options: ReadOptions) -> tuple[Tensor, Tensor | None]:
    """1 / r of Eq. 15 for Hv [T, nC] -> [T]; 0 for a token of zeros without epsilon, which has no direction.

    Also what rms.scaling says that tokens have to be multiplied by: 1 / r is that of the products. Where there is no
    division it is 1, and tokens are taken as they are.
    """
    if options.rms_eps == "off":
        return Hv.new_ones(len(Hv)), None
    r = _rms(Hv)
    shift = torch_rms.scaling(r, Hv, options.floor)
    if shift is not None:
        r = _rms(_times(Hv, shift))
    eps = options.eps if shift is None else options.eps * shift
    if options.rms_eps == "inside":
        square = r.square_().add_(eps if shift is None else eps * shift)
        return torch.where(square == 0, 0, square.rsqrt()), shift
    if options.rms_eps == "added":
        r = r + eps
    return torch.where(r == 0, 0, r.reciprocal()), shift


def _rms(Hv: Tensor) -> Tensor:
    return torch.linalg.vector_norm(Hv, dim=-1) / Hv.shape[-1] ** 0.5


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
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        phi: Tensor,
        scale: Tensor,
        bias: Tensor,
        mix: Tensor | None,
        options: ReadOptions,
    ) -> tuple[Tensor, ...]:
        T, n, C = H.shape
        Hc = H.to(phi.dtype)
        Hv = Hc.view(T, n * C)
        inv_r, shift = inverse_rms(Hv, options)
        t = torch.mm(phi.mT, _times(Hv, shift).mT).mul_(inv_r)
        pre, post, res = torch_coefficients.forward(t, scale, bias, options)
        pre = pre.mT.contiguous()
        by = pre if mix is None else mix
        x = torch.bmm(by.unsqueeze(1), Hc).squeeze(1).to(H.dtype)
        res = res.permute(2, 0, 1)
        res = res.contiguous() if options.use_res else res  # the write keeps it too
        kept = res if options.implicit else None
        ctx.save_for_backward(H, phi, scale, bias, t, inv_r, shift, by, kept)
        ctx.options, ctx.mixed = options, mix is not None
        ctx.set_materialize_grads(False)
        return x, pre, post.mT.contiguous(), res, H.view_as(H)

    @staticmethod
    @once_differentiable
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
        options, dtype = ctx.options, phi.dtype
        Hc = H.to(dtype)
        Hv = _times(Hc.view(T, n * C), shift)
        dxc = H.new_zeros(T, C, dtype=dtype) if dx is None else dx.to(dtype)
        through_x = torch.bmm(dxc.unsqueeze(1), Hc.mT).squeeze(1)
        dmix = through_x if ctx.mixed else None
        dpre = None if dpre is None else dpre.mT
        if not ctx.mixed:
            dpre = through_x.mT if dpre is None else through_x.mT + dpre
        dpost = None if dpost is None else dpost.mT
        dres = None if dres is None else dres.permute(1, 2, 0).contiguous()
        res = None if res is None else res.permute(1, 2, 0).contiguous()
        dt, dscale, dbias = torch_coefficients.backward(t, scale, bias, dpre, dpost, dres, res, options)
        c = rms_pullback((dt * t).sum(0), inv_r, shift, n * C, options)
        dp = dt.mul_(inv_r)
        dphi = torch.mm(dp, Hv).mT  # half the time of Hv.mT dp.mT; of K = 24 the same bits, too
        if shift is not None:
            dp, c = dp * shift, c * shift
        if dH is None:
            out = torch.mm(dp.mT, phi.mT)
        else:
            out = torch.addmm(dH.to(dtype).reshape(T, n * C), dp.mT, phi.mT)
        out.addcmul_(Hv, c.unsqueeze(1))
        out.view(T, n, C).baddbmm_(by.unsqueeze(-1), dxc.unsqueeze(1))
        return out.view(T, n, C).to(H.dtype), dphi, dscale, dbias, dmix, None


def _times(Hv: Tensor, shift: Tensor | None) -> Tensor:
    """Hv [T, nC] with every token multiplied by its shift [T]."""
    return Hv if shift is None else Hv * shift.unsqueeze(1)


class _Write(Function):
    """(H [T,n,C], y [T,1 or n,C], post [T,n], res [T,n,n]) -> H'_o = sum_i res[o,i] H_i + post[o] y_o.

    Without res the carry is the identity: H is not kept, and its gradient is that of H'.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, H: Tensor, y: Tensor, post: Tensor, res: Tensor | None) -> Tensor:
        ctx.save_for_backward(None if res is None else H, y, post, res)
        yc, p = y.to(post.dtype), post.unsqueeze(-1)
        if res is None:
            return torch.addcmul(H.to(post.dtype), yc, p).to(H.dtype)
        return torch.bmm(res, H.to(res.dtype)).addcmul_(yc, p).to(H.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dout: Tensor) -> tuple[Tensor | None, ...]:
        H, y, post, res = ctx.saved_tensors
        dtype = post.dtype
        d = dout.to(dtype).contiguous()  # a sum hands back strides of 0, with which bmm goes token by token
        dH = dy = dpost = dres = None
        if ctx.needs_input_grad[0]:
            dH = dout if res is None else torch.bmm(res.mT, d).to(H.dtype)
        shared = y.shape[1] == 1  # every stream receives the same y
        if ctx.needs_input_grad[1]:
            dy = torch.bmm(post.unsqueeze(1), d) if shared else d * post.unsqueeze(-1)
            dy = dy.to(y.dtype)
        if ctx.needs_input_grad[2]:
            yc = y.to(dtype)
            dpost = torch.bmm(yc, d.mT).squeeze(1) if shared else (d * yc).sum(-1)
        if ctx.needs_input_grad[3]:
            dres = torch.bmm(d, H.to(dtype).mT)
        return dH, dy, dpost, dres


def read(
    H: Tensor,
    phi: Tensor,
    scale: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor],
    options: ReadOptions,
    mix: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mHC's read. H [T,n,C] of any float dtype; phi [nC,K], scale [K], bias [K] fp32 (fp64 with fp64
    streams).

    Scale and bias may also come as their parts for pre, post and res, of those that phi predicts, in this order:
    biases [n], [n] and [n*n]; scales alike, or all [1], one number for all columns of a part (the alphas).

    mix [T,n], fp32 or fp64 as phi: x = sum_i mix[i] H_i instead of by the pre that is predicted (single-pass mHC).

    Returns x [T,C] in H's dtype; pre [T,n], post [T,n], res [T,n,n] in phi's; and H again, for the write to
    use.
    """
    if not isinstance(bias, Tensor):
        scale = torch.cat([s.expand(len(b)) for s, b in zip(scale, bias, strict=True)])
        bias = torch.cat(list(bias))
    return _Read.apply(H.contiguous(), phi, scale, bias, mix, options)


def write(
    H: Tensor, y: Tensor, post: Tensor, res: Tensor | None, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """H'_o = sum_i res[o,i] H_i + post[o] dropout(y + bias)_o, in H's dtype.

    H [T,n,C]; y [T,1,C], the same for all streams, or [T,n,C], a part for each (FC); post [T,n], res [T,n,n] or
    None, the identity; bias of y's shape without T.
    """
    if bias is not None or dropout:
        y = y.to(post.dtype)  # what is made of y and its gradient is rounded at the end, not at every step
    if bias is not None:
        y = y + bias
    if dropout:
        y = F.dropout(y, dropout)
    return _Write.apply(H.contiguous(), y, post, res)
