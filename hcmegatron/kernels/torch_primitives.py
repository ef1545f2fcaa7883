"""What torch_path's read and write are made of, in torch. Compiled primitives take their place in native/primitives.py.

Everything is computed in the coefficients' precision, fp32 or fp64, and rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hcmegatron.kernels import torch_coefficients, torch_sinkhorn
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.torch_coefficients import Sinkhorn


class WriteGradients(NamedTuple):
    """Of a write's H, y, post and res; None where it is not needed."""

    H: Tensor | None
    y: Tensor | None
    post: Tensor | None
    res: Tensor | None


class Primitives:
    """By torch.

    H [T,n,C] are the streams, in any float dtype, Hc the same in the coefficients'. A read's logits are scale t + bias
    with t [K,T].
    """

    sinkhorn: Sinkhorn = torch_sinkhorn

    def coefficients(
        self, t: Tensor, scale: Tensor, bias: Tensor, options: ReadOptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """pre [T,n], post [T,n] and res [T,n,n], contiguous but for a res that is the same for all tokens."""
        pre, post, res = torch_coefficients.forward(t, scale, bias, options, self.sinkhorn)
        res = res.permute(2, 0, 1)
        return pre.mT.contiguous(), post.mT.contiguous(), res.contiguous() if options.use_res else res

    def coefficients_backward(
        self,
        t: Tensor,
        scale: Tensor,
        bias: Tensor,
        dpre: Tensor | None,
        dpost: Tensor | None,
        dres: Tensor | None,
        res: Tensor | None,
        options: ReadOptions,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """From the gradients of the coefficients, None for zero, those of t [K,T], scale [K] and bias [K], and
        sum_k dt t [T]. res is the forward's, where `options.implicit`."""
        dpre = None if dpre is None else dpre.mT
        dpost = None if dpost is None else dpost.mT
        dres = None if dres is None else dres.permute(1, 2, 0).contiguous()
        res = None if res is None else res.permute(1, 2, 0).contiguous()
        dt, dscale, dbias = torch_coefficients.backward(
            t, scale, bias, dpre, dpost, dres, res, options, self.sinkhorn
        )
        return dt, dscale, dbias, (dt * t).sum(0)

    def aggregate(self, H: Tensor, Hc: Tensor, mix: Tensor) -> Tensor:
        """x [T,C] = sum_i mix[i] H_i in H's dtype; mix [T,n]."""
        return torch.bmm(mix.unsqueeze(1), Hc).squeeze(1).to(H.dtype)

    def aggregate_backward(self, H: Tensor, Hc: Tensor, dx: Tensor) -> Tensor:
        """The gradient of mix [T,n]; dx [T,C] in H's dtype."""
        return torch.bmm(dx.to(Hc.dtype).unsqueeze(1), Hc.mT).squeeze(1)

    def streams_backward(
        self,
        H: Tensor,
        Hv: Tensor,
        dH: Tensor | None,
        dp: Tensor,
        phi: Tensor,
        c: Tensor,
        mix: Tensor,
        dx: Tensor,
    ) -> Tensor:
        """The gradient of H: dH of its other use, dp [K,T] through the projection, c [T] times Hv and dx through x.

        Hv [T,nC] is Hc, or Hc with tokens multiplied by powers of two; dH [T,n,C], dx [T,C] in H's dtype.
        """
        T, n, C = H.shape
        if dH is None:
            out = torch.mm(dp.mT, phi.mT)
        else:
            out = torch.addmm(dH.to(phi.dtype).reshape(T, n * C), dp.mT, phi.mT)
        out.addcmul_(Hv, c.unsqueeze(1))
        out.view(T, n, C).baddbmm_(mix.unsqueeze(-1), dx.to(phi.dtype).unsqueeze(1))
        return out.view(T, n, C).to(H.dtype)

    def write(self, H: Tensor, y: Tensor, post: Tensor, res: Tensor | None) -> Tensor:
        """H'_o = sum_i res[o,i] H_i + post[o] y_o in H's dtype; shapes as torch_path.write's."""
        yc, p = y.to(post.dtype), post.unsqueeze(-1)
        if res is None:
            return torch.addcmul(H.to(post.dtype), yc, p).to(H.dtype)
        return torch.bmm(res, H.to(res.dtype)).addcmul_(yc, p).to(H.dtype)

    def write_backward(
        self,
        H: Tensor | None,
        y: Tensor,
        post: Tensor,
        res: Tensor | None,
        dout: Tensor,
        needed: tuple[bool, ...],
    ) -> WriteGradients:
        """The gradients of H, y, post and res, of those that are needed, from that of H'. Without res H is None."""
        dtype = post.dtype
        d = dout.to(dtype).contiguous()  # a sum hands back strides of 0, with which bmm goes token by token
        dH = dy = dpost = dres = None
        if needed[0]:
            dH = dout if res is None else torch.bmm(res.mT, d).to(dout.dtype)
        shared = y.shape[1] == 1  # every stream receives the same y
        if needed[1]:
            dy = torch.bmm(post.unsqueeze(1), d) if shared else d * post.unsqueeze(-1)
            dy = dy.to(y.dtype)
        if needed[2]:
            yc = y.to(dtype)
            dpost = torch.bmm(yc, d.mT).squeeze(1) if shared else (d * yc).sum(-1)
        if needed[3] and H is not None:
            dres = torch.bmm(d, H.to(dtype).mT)
        return WriteGradients(dH, dy, dpost, dres)
