"""The gated residual's read on Triton: launches, products and autograd. Signature as torch_gated's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import tiles, torch_gated, triton_gated
from hcmegatron.kernels.autocast import without_autocast


@contextmanager
def _products(R: Tensor) -> Iterator[None]:
    """Products of fp32 numbers run in TF32 beside streams of 16 bits, as mHC's do, in fp32 beside others."""
    matmul, cpus = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = (
        matmul.fp32_precision,
        cpus.fp32_precision,
    )  # reading allow_tf32 is an error where these alone have been set
    try:
        whole = torch.get_float32_matmul_precision()
    except RuntimeError:  # as is reading this one then
        whole = None
    matmul.allow_tf32 = tiles.precision(R) == "tf32"  # sets all of them but the processor's
    try:
        yield
    finally:
        if whole is None:
            matmul.allow_tf32 = before[0] == "tf32"
        else:
            torch.set_float32_matmul_precision(whole)
        matmul.fp32_precision, cpus.fp32_precision = before


def _normed(R: Tensor, gamma: Tensor, inverse: Tensor, shift: Tensor, eps: float, *, given: bool) -> Tensor:
    """Rh [T,nC] in fp32; 1 / rms and shift [T,n] are `given`, or filled."""
    T, n, C = R.shape
    Rh = torch.empty_like(R, dtype=gamma.dtype)
    size = tiles.tile("gated_norm", R)
    triton_gated.gated_norm[(triton.cdiv(T, size.BT), n)](
        R, gamma, Rh, inverse, shift, T, N=n, C=C, EPS=eps, FLOOR=eps**0.5, GIVEN=given, **size.launch
    )
    return Rh.view(T, n * C)


class _Read(Function):
    """As torch_gated's."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx, R: Tensor, gamma: Tensor, W_d: Tensor, W_u: Tensor, W_w: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        T, n, C = R.shape
        inverse, shift, shares = (gamma.new_empty(T, n) for _ in range(3))
        x = R.new_empty(T, C)
        p = gamma.new_empty(T, W_d.shape[1] + n)
        if T:
            Rh = _normed(R, gamma, inverse, shift, eps, given=False)
            with _products(R):
                p = torch.mm(Rh, torch.cat([W_d, W_w], 1)).div_(n)
                logits = torch_gated.logits(p, W_u)[1]
            size = tiles.tile("gated_mix", R)
            triton_gated.gated_mix[(triton.cdiv(T, size.BT),)](
                R, gamma, inverse, shift, logits, x, shares, T, N=n, C=C, **size.launch
            )
        s = torch.sigmoid(p[:, len(W_u) :]).mul_(2)
        ctx.save_for_backward(R, gamma, W_d, W_u, W_w, inverse, shift, p)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(shares)
        return x, s, shares, R.view_as(R)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(
        ctx: FunctionCtx, dx: Tensor | None, ds: Tensor | None, _: None, dR: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        R, gamma, W_d, W_u, W_w, inverse, shift, p = ctx.saved_tensors
        T, n, C = R.shape
        if not T:
            return torch.zeros_like(R), *(torch.zeros_like(w) for w in (gamma, W_d, W_u, W_w)), None
        dx = torch.zeros_like(R[:, 0]) if dx is None else dx.contiguous()
        s = torch.sigmoid(p[:, len(W_u) :]).mul_(2)
        with _products(R):
            hidden, logits = torch_gated.logits(p, W_u)
            dlogits = torch.empty_like(logits)
            size = tiles.tile("gated_backward_gates", R)
            grid = (triton.cdiv(T, size.BT), n * triton.cdiv(C, size.BC))
            triton_gated.gated_backward_gates[grid](
                dx, R, gamma, inverse, shift, logits, dlogits, T, N=n, C=C, **size.launch
            )
            dp, dW_u = torch_gated.projections_pullback(p, s, hidden, dlogits, ds, W_u)
            dp.div_(n)
            dW = torch.mm(_normed(R, gamma, inverse, shift, ctx.eps, given=True).mT, dp)
            dRh = torch.mm(dp, torch.cat([W_d, W_w], 1).mT)
        out = torch.empty_like(R)
        size = tiles.tile("gated_backward_streams", R)
        programs = triton.cdiv(T, size.BT)
        dgamma = gamma.new_empty(programs, n, C)
        triton_gated.gated_backward_streams[(programs, n)](
            dx,
            R,
            gamma,
            inverse,
            shift,
            logits,
            dRh,
            R if dR is None else dR.contiguous(),  # R stands in, unread
            out,
            dgamma,
            T,
            N=n,
            C=C,
            HAS_DR=dR is not None,
            **size.launch,
        )
        dW_d, dW_w = dW.split([W_d.shape[1], n], 1)
        return out, dgamma.sum(0), dW_d, dW_u, dW_w, None


def read(
    R: Tensor, gamma: Tensor, W_d: Tensor, W_u: Tensor, W_w: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """torch_gated.read on Triton; streams are bf16, fp16 or fp32, the rest fp32.

    Raises ValueError for streams of another type.
    """
    tiles.check(R)
    weights = (weight.contiguous() for weight in (gamma, W_d, W_u, W_w))
    return _Read.apply(R.contiguous(), *weights, eps)
