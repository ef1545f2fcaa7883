"""mHC's read on Triton: launches and autograd."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable

from hcmegatron.kernels import tiles, triton_projection, triton_read_backward, triton_read_forward
from hcmegatron.kernels.autocast import without_autocast
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.tiles import power_of_two, products, split_channels, split_tokens

Projection = tuple[
    Tensor, Tensor
]  # H phi [T,K] and the sum of H's squares [T], fp32; or parts of them, [parts, ...]


@functools.cache
def _shape(options: ReadOptions, stride: int) -> Mapping[str, Any]:
    """Compile-time constants that both directions of the read share; made once, for the host has other things to do."""
    return {
        "N": options.n,
        "K": options.columns,
        "SCALE_STRIDE": stride,
        "USE_PRE": options.use_pre,
        "USE_POST": options.use_post,
        "USE_RES": options.use_res,
    }


def _stride(scale: tuple[Tensor, ...]) -> int:
    """0 where a scale is one number a part, 1 where it is one a column."""
    return 0 if sum(s.numel() for s in scale) == len(scale) else 1


@functools.cache
def _coefficients(options: ReadOptions) -> Mapping[str, Any]:
    """The same for the kernels that make the coefficients or pull them back."""
    return {
        "NP": power_of_two(options.n),
        "RC": options.res_columns,
        "RP": power_of_two(options.res_columns),
        "RES_MAP": options.res_map,
        "ITERATIONS": options.iterations,
        "SINKHORN_EPS": options.sinkhorn_eps,
        "RMS_EPS": options.rms_eps,
        "EPS": options.eps,
        "TRANSPOSE_IN": options.orientation != "paper",
        "TRANSPOSE_OUT": options.orientation == "column_last",
    }


def _by_part(options: ReadOptions, parts: tuple[Tensor, ...], absent: Tensor) -> list[Tensor]:
    """Those of pre, post and res, with a tensor that is not read in place of a disabled one's."""
    given = iter(parts)
    return [next(given) if size else absent for size in options.sizes]


def _project(H: Tensor, phi: Tensor, options: ReadOptions) -> Projection:
    """Of the read's own streams [T,n,C]."""
    T, n, C = H.shape
    size = tiles.tile("project", H)
    span = split_channels(T, n * C, size, tiles.hardware(H.device).processors)
    parts = triton.cdiv(n * C, span)
    proj, square = phi.new_empty(parts, T, options.columns), phi.new_empty(parts, T)
    triton_projection.project[(triton.cdiv(T, size.BT), parts)](
        H,
        phi,
        proj,
        square,
        T,
        W=n * C,
        K=options.columns,
        KP=tiles.columns(options.columns),
        SPAN=span,
        V=size.V,
        STAGES=size.stages,
        PRECISION=products(H),
        **size.launch,
    )
    return proj, square


class ReadFunction(Function):
    """(H, phi, scales, biases) -> (x, pre, post, res, H again): see torch_path.

    Scales and biases come as their parts for pre, post and res: the biases [size], the scales [size] or [1], of those
    in `options.sizes` that are not 0; all scales first, then all biases.
    """

    @staticmethod
    @without_autocast
    def forward(
        ctx: FunctionCtx,
        H: Tensor,
        phi: Tensor,
        options: ReadOptions,
        projection: Projection | None,
        *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        T, n, C = H.shape
        scale, bias = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        x = H.new_empty(T, C)
        t, inv_r, shift, pre, post, res = (
            phi.new_empty(T, *shape) for shape in ((options.columns,), (), (), (n,), (n,), (n, n))
        )
        if T:
            proj, square = projection or _project(H, phi, options)
            size = tiles.tile("read_forward", H)
            chunks = triton.cdiv(C, size.BC)
            triton_read_forward.read_forward[(triton.cdiv(T, size.BT) * (1 + chunks),)](
                H,
                phi,
                *_by_part(options, scale, phi),
                *_by_part(options, bias, phi),
                proj,
                square,
                x,
                t,
                inv_r,
                shift,
                pre,
                post,
                res,
                T,
                C=C,
                KP=tiles.columns(options.columns),
                PARTS=square.numel() // T,
                FLOOR=options.floor,
                PRE_EPS=options.pre_eps,
                POST_EPS=options.post_eps,
                PRECISION=tiles.precision(H),
                **_shape(options, _stride(scale)),
                **_coefficients(options),
                **size.launch,
            )
        ctx.save_for_backward(H, phi, t, inv_r, shift, pre, *parts)
        ctx.options = options
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
        H, phi, _, _, _, _, *parts = ctx.saved_tensors
        if not len(H):
            return torch.zeros_like(H), torch.zeros_like(phi), None, None, *map(torch.zeros_like, parts)
        dx = torch.zeros_like(H[:, 0]) if dx is None else dx.contiguous()
        dp, factor, sums = _backward_coefficients(ctx, dx, dpre, dpost, dres)
        out, dphi_parts = _backward_streams(ctx, dx, dH, dp, factor)
        dphi, *gradients = _backward_sums(ctx, dphi_parts, sums)
        return out, dphi, None, None, *gradients


def _backward_coefficients(ctx: Any, dx: Tensor, *given: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of Hv phi [T,K], the factor of Hv in its own [T], and parts of those of bias and scale."""
    H, _, t, inv_r, shift, _, *parts = ctx.saved_tensors
    options = ctx.options
    T, _, C = H.shape
    scale, bias = tuple(parts[: len(parts) // 2]), tuple(parts[len(parts) // 2 :])
    size = tiles.tile("read_backward_coefficients", H)
    programs = triton.cdiv(T, size.BT)
    dp, factor = torch.empty_like(t), torch.empty_like(inv_r)
    sums = t.new_empty(programs, 2, options.columns)
    triton_read_backward.read_backward_coefficients[(programs,)](
        dx,
        H,
        t,
        inv_r,
        shift,
        *_by_part(options, scale, t),
        *_by_part(options, bias, t),
        *(H if d is None else d.contiguous() for d in given),  # H stands in, unread
        dp,
        factor,
        sums,
        T,
        C=C,
        IP=power_of_two(options.iterations),
        HAS_DPRE=given[0] is not None,
        HAS_DPOST=given[1] is not None,
        HAS_DRES=given[2] is not None,
        IMPLICIT=options.implicit,
        **_shape(options, _stride(scale)),
        **_coefficients(options),
        **size.launch,
    )
    return dp, factor, sums


def _backward_streams(
    ctx: Any, dx: Tensor, dH: Tensor | None, dp: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """The streams' gradient [T,n,C] and phi's in parts [splits, nC, K]."""
    H, phi, _, _, shift, pre, *_ = ctx.saved_tensors
    T, n, C = H.shape
    size = tiles.tile("read_backward_streams", H)
    span = split_tokens(T, n, C, H.element_size(), size, tiles.hardware(H.device).processors)
    splits = triton.cdiv(T, span)
    out, parts = torch.empty_like(H), phi.new_empty(splits, *phi.shape)
    triton_read_backward.read_backward_streams[(triton.cdiv(C, size.BC), n // size.G, splits)](
        dx,
        H if dH is None else dH.contiguous(),
        H,
        pre,
        dp,
        factor,
        shift,
        phi,
        out,
        parts,
        T,
        span,
        N=n,
        C=C,
        K=phi.shape[1],
        KP=tiles.columns(phi.shape[1]),
        G=size.G,
        STAGES=size.stages,
        HAS_DH=dH is not None,
        PRECISION=tiles.precision(H),
        **size.launch,
    )
    return out, parts


def _backward_sums(ctx: Any, dphi_parts: Tensor, sums: Tensor) -> list[Tensor]:
    """The gradients of phi, of the scales and of the biases."""
    H, phi, _, _, _, _, *parts = ctx.saved_tensors
    options = ctx.options
    scale = tuple(parts[: len(parts) // 2])
    whole = len(dphi_parts) == 1
    dphi = dphi_parts[0] if whole else torch.empty_like(phi)
    small = phi.new_empty(sum(p.numel() for p in parts))
    dscale, dbias = small.split([sum(s.numel() for s in scale), options.columns])
    size = tiles.tile("read_backward_sums", H)
    grid = (1 if whole else 1 + triton.cdiv(phi.numel(), size.BC),)
    triton_read_backward.read_backward_sums[grid](
        dphi_parts,
        sums,
        dphi,
        dbias,
        dscale,
        len(dphi_parts),
        len(sums),
        W=phi.numel(),
        KP=tiles.columns(options.columns),
        **_shape(options, _stride(scale)),
        **size.launch,
    )
    return [dphi, *small.split([p.numel() for p in parts])]
