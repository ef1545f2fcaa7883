"""The gated residual's read, compiled but for its products, in place of torch_gated's.

That one still runs what this does not cover: tensors off the CPU, precisions other than fp32 weights beside fp32 or
bf16 streams, a hidden size that is no multiple of 16, and streams whose squares leave fp32's range.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import torch_gated
from hcmegatron.kernels.autocast import without_autocast
from hcmegatron.kernels.native.library import LANES, MAX_STREAMS, address, function
from hcmegatron.kernels.torch_rms import ORDINARY

FILE = "gated"


class _Read(Function):
    """As torch_gated's, given Rh [T,n,C] and 1 / rms [T,n]."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx,
        R: Tensor,
        gamma: Tensor,
        W_d: Tensor,
        W_u: Tensor,
        W_w: Tensor,
        Rh: Tensor,
        inverse: Tensor,
    ) -> tuple[Tensor, ...]:
        T, n, C = R.shape
        p = torch_gated.thin(Rh.view(T, n * C), torch.cat([W_d, W_w], 1)).contiguous().div_(n)
        logits = torch_gated.logits(p, W_u)[1]
        x, shares = R.new_empty(T, C), gamma.new_empty(T, n)
        function("gated_mix", n)(*map(address, (Rh, logits, x, shares)), T, C, _bf16(R))
        s = torch.sigmoid(p[:, len(W_u) :]).mul_(2)
        ctx.save_for_backward(R, gamma, W_d, W_u, W_w, inverse, p)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(shares)
        return x, s, shares, R.view_as(R)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx, dx: Tensor | None, ds: Tensor | None, _: None, dR: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        R, gamma, W_d, W_u, W_w, inverse, p = ctx.saved_tensors
        (T, n, C), bf16 = R.shape, _bf16(R)
        dx = torch.zeros_like(R[:, 0]) if dx is None else dx.contiguous()
        hidden, gates = torch_gated.logits(p, W_u)
        dlogits, Rh = torch.empty_like(gates), torch.empty_like(gates)
        function("gated_backward_gates", n)(
            *map(address, (R, gamma, inverse, dx, gates, dlogits, Rh)), T, C, bf16
        )
        s = torch.sigmoid(p[:, len(W_u) :]).mul_(2)
        dp, dW_u = torch_gated.projections_pullback(p, s, hidden, dlogits, ds, W_u)
        dp.div_(n)
        dW = torch_gated.thin(Rh.mT, dp)
        dRh = torch.mm(dp, torch.cat([W_d, W_w], 1).mT, out=Rh)
        out, dgamma = torch.empty_like(R), torch.zeros_like(gamma)
        dR = None if dR is None else dR.contiguous()
        given = (R, gamma, inverse, dx, gates, dRh, dR, out, dgamma)
        function("gated_backward_streams", n)(*map(address, given), T, C, bf16)
        dW_d, dW_w = dW.split([W_d.shape[1], n], 1)
        return out, dgamma, dW_d, dW_u, dW_w, None, None


def read(
    R: Tensor, gamma: Tensor, W_d: Tensor, W_u: Tensor, W_w: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torch_gated.read."""
    R, gamma = R.contiguous(), gamma.contiguous()
    if _fits(R, gamma):
        (T, n, C), Rh = R.shape, torch.empty_like(R, dtype=gamma.dtype)
        inverse = gamma.new_empty(T, n)
        given = map(address, (R, gamma, Rh, inverse))
        function("gated_norm", n)(*given, T, C, eps, _bf16(R))
        low, high = torch.aminmax(inverse)  # NaN where there is one
        if low > 1 / ORDINARY and high < ORDINARY:
            return _Read.apply(R, gamma, W_d, W_u, W_w, Rh.detach(), inverse.detach())
    return torch_gated.read(R, gamma, W_d, W_u, W_w, eps)


def _bf16(R: Tensor) -> bool:
    return R.dtype == torch.bfloat16


def _fits(R: Tensor, gamma: Tensor) -> bool:
    on_cpu = R.device.type == "cpu" and R.numel() > 0
    fits = R.dtype in (torch.float32, torch.bfloat16) and gamma.dtype == torch.float32
    return on_cpu and fits and R.shape[1] <= MAX_STREAMS and R.shape[2] % LANES == 0
