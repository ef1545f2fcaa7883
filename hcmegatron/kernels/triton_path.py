"""mHC's read and every connection's write on Triton: launches and autograd. Signatures as in torch_path.

Streams are bf16, fp16 or fp32; phi, scale, bias and all coefficients fp32. The projection runs in TF32 on
16-bit streams (their own values are exact in it) and in full fp32 on fp32 streams. Every sum has one order:
results repeat bit for bit.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import triton_read, triton_write
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.tiles import Tile, columns, power_of_two, tile

Projection = tuple[Tensor, Tensor]  # H phi [T,K] and the sum of H's squares [T], fp32


def _check(H: Tensor) -> None:
    if H.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"kernels=triton: streams of {H.dtype} are not supported; use kernels=torch")


def _precision(H: Tensor) -> str:
    return "ieee" if H.dtype == torch.float32 else "tf32"


def _shape(options: ReadOptions) -> dict[str, Any]:
    """Compile-time constants that both directions of the read share."""
    return {
        "K": options.columns,
        "NP": power_of_two(options.n),
        "USE_PRE": options.use_pre,
        "USE_POST": options.use_post,
        "USE_RES": options.use_res,
        "ITERATIONS": options.iterations,
        "SINKHORN_EPS": options.sinkhorn_eps,
        "RMS_EPS": options.rms_eps,
        "EPS": options.eps,
        "TRANSPOSE_IN": options.orientation != "paper",
        "TRANSPOSE_OUT": options.orientation == "column_last",
    }


def _of(t: Tile) -> dict[str, int]:
    return {"BT": t.BT, "BC": t.BC, "num_warps": t.warps, "num_stages": t.stages}


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class _Read(Function):
    """(H, phi, scale, bias) -> (x, pre, post, res, H again): see torch_path._Read."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        phi: Tensor,
        scale: Tensor,
        bias: Tensor,
        options: ReadOptions,
        projection: Projection | None,
    ) -> tuple[Tensor, ...]:
        T, n, C = H.shape
        K = options.columns
        x = H.new_empty(T, C)
        t, inv_r, shift, pre, post, res = (
            phi.new_empty(T, *shape) for shape in ((K,), (), (), (n,), (n,), (n, n))
        )
        if T:
            size = tile("read_forward", n, C, H.element_size())
            triton_read.read_forward[(triton.cdiv(T, size.BT),)](
                H,
                phi,
                scale,
                bias,
                *(projection or (t, inv_r)),
                x,
                t,
                inv_r,
                shift,
                pre,
                post,
                res,
                T,
                N=n,
                C=C,
                KP=columns(n),
                FLOOR=options.floor,
                PRE_EPS=options.pre_eps,
                FOLDED=projection is not None,
                PRECISION=_precision(H),
                **_shape(options),
                **_of(size),
            )
        ctx.save_for_backward(H, phi, scale, bias, t, inv_r, shift, pre)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return x, pre, post, res, H.view_as(H)

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
        H, phi, scale, bias, t, inv_r, shift, pre = ctx.saved_tensors
        options = ctx.options
        T, n, C = H.shape
        K = options.columns
        if T == 0:
            return torch.zeros_like(H), *(torch.zeros_like(p) for p in (phi, scale, bias)), None, None
        dx = H.new_zeros(T, C) if dx is None else dx.contiguous()
        given = [None if d is None else d.contiguous() for d in (dpre, dpost, dres, dH)]
        dpre, dpost, dres, dH = (H if d is None else d for d in given)  # H stands in, unread
        has = [d is not None for d in given]
        size = tile("read_backward_coefficients", n, C, H.element_size())
        programs = triton.cdiv(T, size.BT)
        dp, factor = torch.empty_like(t), torch.empty_like(inv_r)
        dscale, dbias = scale.new_empty(programs, K), scale.new_empty(programs, K)
        triton_read.read_backward_coefficients[(programs,)](
            dx,
            H,
            t,
            inv_r,
            shift,
            scale,
            bias,
            dpre,
            dpost,
            dres,
            dp,
            factor,
            dscale,
            dbias,
            T,
            N=n,
            C=C,
            IP=power_of_two(options.iterations),
            HAS_DPRE=has[0],
            HAS_DPOST=has[1],
            HAS_DRES=has[2],
            **_shape(options),
            **_of(size),
        )
        size = tile("read_backward_streams", n, C, H.element_size())
        owners = triton.cdiv(C, size.BC) * (n // size.G)
        splits = max(1, min(triton.cdiv(4 * _processors(H.device), owners), triton.cdiv(T, size.BT)))
        span = triton.cdiv(triton.cdiv(T, splits), size.BT) * size.BT
        splits = triton.cdiv(T, span)
        out, dphi = torch.empty_like(H), phi.new_empty(splits, n * C, K)
        triton_read.read_backward_streams[(triton.cdiv(C, size.BC), n // size.G, splits)](
            dx,
            dH,
            H,
            pre,
            dp,
            factor,
            shift,
            phi,
            out,
            dphi,
            T,
            span,
            N=n,
            C=C,
            K=K,
            KP=columns(n),
            G=size.G,
            HAS_DH=has[3],
            PRECISION=_precision(H),
            **_of(size),
        )
        return out, dphi.sum(0), dscale.sum(0), dbias.sum(0), None, None


class _Write(Function):
    """(H, y, post, res, bias) -> H', and the next read's projection where `fold` gives its phi."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        y: Tensor,
        post: Tensor,
        res: Tensor,
        bias: Tensor | None,
        dropout: float,
        fold: Tensor | None,
    ) -> tuple[Tensor, ...]:
        T, n, C = H.shape
        out = torch.empty_like(H)
        # Drawn on the device, without waiting, from the generator that dropout would use. A run has more masks than
        # there are numbers of 31 bits.
        seed = torch.randint(2**63 - 1, (1,), device=H.device) if dropout else post
        given = bias if bias is not None else y
        flags = {"N": n, "R": y.shape[1], "C": C, "HAS_BIAS": bias is not None, "DROPOUT": dropout > 0}
        proj = square = None
        if fold is not None:
            proj, square = post.new_empty(T, fold.shape[1]), post.new_empty(T)
            size = tile("write_fold", n, C, H.element_size())
            if T:
                triton_write.write_fold[(triton.cdiv(T, size.BT),)](
                    H,
                    y,
                    given,
                    seed,
                    post,
                    res,
                    out,
                    fold,
                    proj,
                    square,
                    T,
                    dropout,
                    K=fold.shape[1],
                    KP=columns(n),
                    PRECISION=_precision(H),
                    **flags,
                    **_of(size),
                )
            ctx.mark_non_differentiable(proj, square)
        elif T:
            size = tile("write_forward", n, C, H.element_size())
            triton_write.write_forward[(triton.cdiv(T, size.BT), triton.cdiv(C, size.BC))](
                H, y, given, seed, post, res, out, T, dropout, **flags, **_of(size)
            )
        ctx.save_for_backward(H, y, given, seed, post, res)
        ctx.flags, ctx.dropout = flags, dropout
        return out, proj, square

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dout: Tensor, *_: None) -> tuple[Tensor | None, ...]:
        H, y, bias, seed, post, res = ctx.saved_tensors
        T, n, C = H.shape
        dH, dpost, dres = (torch.empty_like(t) for t in (H, post, res))
        with_bias = ctx.flags["HAS_BIAS"]
        # the bias has the sum of what y has rounded
        dy = torch.empty_like(y, dtype=torch.float32 if with_bias else y.dtype)
        if T:
            size = tile("write_backward", n, C, H.element_size())
            triton_write.write_backward[(triton.cdiv(T, size.BT),)](
                dout.contiguous(),
                H,
                y,
                bias,
                seed,
                post,
                res,
                dH,
                dy,
                dpost,
                dres,
                T,
                ctx.dropout,
                V=size.V,
                **ctx.flags,
                **_of(size),
            )
        dbias = dy.sum(0).to(bias.dtype) if with_bias else None
        return dH, dy.to(y.dtype), dpost, dres, dbias, None, None


def read(
    H: Tensor,
    phi: Tensor,
    scale: Tensor,
    bias: Tensor,
    options: ReadOptions,
    projection: Projection | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mHC's read, as torch_path.read; `projection` as `write_and_project` returned it saves a pass over H.

    Raises ValueError for streams of another type than bf16, fp16 and fp32.
    """
    _check(H)
    return _Read.apply(
        H.contiguous(), phi.contiguous(), scale.contiguous(), bias.contiguous(), options, projection
    )


def write(
    H: Tensor, y: Tensor, post: Tensor, res: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Every connection's write, as torch_path.write, bias and dropout in the same pass."""
    return _write(H, y, post, res, bias, dropout, None)[0]


def write_and_project(
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor,
    phi: Tensor,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Projection]:
    """The write and, in the same pass, the projection that the next connection's read starts with.

    phi [nC,K] is the next connection's. The projection carries no gradient: the read that takes it
    differentiates as if it had computed it from H' itself, so it may be kept across a recomputed block's
    boundary.
    """
    out, proj, square = _write(H, y, post, res, bias, dropout, phi.detach().contiguous())
    return out, (proj, square)


def _write(
    H: Tensor, y: Tensor, post: Tensor, res: Tensor, bias: Tensor | None, dropout: float, fold: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    _check(H)
    bias = None if bias is None else bias.contiguous()
    whole = (t.contiguous() for t in (H, y, post, res))
    return _Write.apply(*whole, bias, dropout, fold)
