"""Compiled primitives of torch_path's read and write. What one does not cover is torch's, call by call:

- tensors off the CPU, and precisions other than fp32 coefficients beside fp32 or bf16 streams;
- of coefficients: permutations, Kronecker products, logits that span too much for Sinkhorn's linear form, and backward
  through Sinkhorn's limit;
- of what goes over the streams: a hidden size that is no multiple of 16. (Backward over tokens that are multiplied by
  powers of two before they are squared never comes here.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from hcmegatron.kernels.native import sinkhorn
from hcmegatron.kernels.native.library import EPS, LANES, MAX_STREAMS, address, function
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.torch_primitives import Primitives, WriteGradients

FILES = ("coefficients", "read", "write")  # of which NativePrimitives calls functions
_STREAMS = (torch.float32, torch.bfloat16)


class SinkhornCompiled(Primitives):
    """torch's primitives, but for Sinkhorn's iterations, which are compiled and have the same bits."""

    sinkhorn = sinkhorn


class NativePrimitives(Primitives):
    """All compiled."""

    def coefficients(
        self, t: Tensor, scale: Tensor, bias: Tensor, options: ReadOptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As Primitives'."""
        if not _of_coefficients(t, options):
            return super().coefficients(t, scale, bias, options)
        n, T = options.n, t.shape[1]
        pre = t.new_empty(T, n) if options.use_pre else t.new_full((T, n), 1 / n)
        post = t.new_empty(T, n) if options.use_post else t.new_ones(T, n)
        res = (
            t.new_empty(T, n, n)
            if options.use_res
            else torch.eye(n, dtype=t.dtype, device=t.device).expand(T, n, n)
        )
        given = [each.contiguous() for each in (t, scale, bias)]
        wide = function("coefficients_forward", n)(
            *map(address, (*given, pre, post, res)),
            *_rows(options),
            T,
            options.pre_eps,
            options.post_eps,
            *_map(options),
        )
        return super().coefficients(t, scale, bias, options) if wide else (pre, post, res)

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
        """As Primitives'."""
        by_torch = super().coefficients_backward
        if options.implicit or not _of_coefficients(t, options):
            return by_torch(t, scale, bias, dpre, dpost, dres, res, options)
        n, (K, T) = options.n, t.shape
        dt, dt_t, sums = torch.zeros_like(t), t.new_empty(T), t.new_empty(2, K)
        scratch = t.new_empty(LANES * ((2 * options.iterations - 1) * n + 2 * K))
        given = [None if each is None else each.contiguous() for each in (t, scale, bias, dpre, dpost, dres)]
        wide = function("coefficients_backward", n)(
            *map(address, (*given, dt, dt_t, sums, scratch)), *_rows(options), T, *_map(options)
        )
        if wide:
            return by_torch(t, scale, bias, dpre, dpost, dres, res, options)
        return dt, sums[0], sums[1], dt_t

    def aggregate(self, H: Tensor, Hc: Tensor, mix: Tensor) -> Tensor:
        """As Primitives'."""
        if not _of_streams(H, mix):
            return super().aggregate(H, Hc, mix)
        T, n, C = H.shape
        mix, x = mix.contiguous(), H.new_empty(T, C)
        function("aggregate", n)(*map(address, (H, mix, x)), T, C, is_bf16(H))
        return x

    def aggregate_backward(self, H: Tensor, Hc: Tensor, dx: Tensor) -> Tensor:
        """As Primitives'."""
        if not _of_streams(H, Hc):
            return super().aggregate_backward(H, Hc, dx)
        T, n, C = H.shape
        dx, dmix = dx.contiguous(), Hc.new_empty(T, n)
        function("aggregate_backward", n)(*map(address, (H, dx, dmix)), T, C, is_bf16(H))
        return dmix

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
        """As Primitives'."""
        (T, n, C), bf16 = H.shape, H.dtype == torch.bfloat16
        if not _of_streams(H, mix):
            return super().streams_backward(H, Hv, dH, dp, phi, c, mix, dx)
        through = torch.mm(dp.mT, phi.mT)
        out = torch.empty_like(H) if bf16 else through.view(T, n, C)
        dH = None if dH is None else dH.contiguous()
        given = (through, H, c, mix.contiguous(), dx.contiguous(), dH, out)
        function("streams_backward", n)(*map(address, given), T, C, bf16)
        return out

    def write(self, H: Tensor, y: Tensor, post: Tensor, res: Tensor | None) -> Tensor:
        """As Primitives'."""
        if not _of_write(H, y, post):
            return super().write(H, y, post, res)
        T, n, C = H.shape
        y, post, out = y.contiguous(), post.contiguous(), torch.empty_like(H)
        res = None if res is None else res.contiguous()
        function("write_forward", n)(
            *map(address, (H, y, post, res, out)), T, C, *_layout(y), is_bf16(H), is_bf16(y)
        )
        return out

    def write_backward(
        self,
        H: Tensor | None,
        y: Tensor,
        post: Tensor,
        res: Tensor | None,
        dout: Tensor,
        needed: tuple[bool, ...],
    ) -> WriteGradients:
        """As Primitives', with all gradients whichever are needed: they come out of one pass."""
        if not _of_write(dout, y, post):
            return super().write_backward(H, y, post, res, dout, needed)
        T, n, C = dout.shape
        d, y, post = dout.contiguous(), y.contiguous(), post.contiguous()
        res = None if res is None else res.contiguous()
        dy, dpost = torch.empty_like(y), torch.empty_like(post)
        dH, dres = (None, None) if res is None else (torch.empty_like(d), torch.empty_like(res))
        given = (H, y, post, res, d, dH, dy, dpost, dres)
        function("write_backward", n)(*map(address, given), T, C, *_layout(y), is_bf16(d), is_bf16(y))
        return WriteGradients(d if res is None else dH, dy, dpost, dres)


def is_bf16(t: Tensor) -> bool:
    return t.dtype == torch.bfloat16


def _layout(y: Tensor) -> tuple[int, bool]:
    """Numbers from one stream's y to the next one's, of y [T,1,C] or [T,n,C]; coefficients are each token's."""
    return 0 if y.shape[1] == 1 else y.shape[2], False


def _of_coefficients(t: Tensor, options: ReadOptions) -> bool:
    fits = t.dtype == torch.float32 and t.device.type == "cpu" and options.n <= MAX_STREAMS
    return fits and (options.res_map == "sinkhorn" or not options.use_res)


def fits(H: Tensor, n: int, coefficients: Tensor) -> bool:
    """Whether streams [..., w,C], n of them or of n fractions, and coefficients beside them are what C takes."""
    precise = H.dtype in _STREAMS and coefficients.dtype == torch.float32 and H.device.type == "cpu"
    return precise and n <= MAX_STREAMS and H.shape[-2] * H.shape[-1] // n % LANES == 0


def _of_streams(H: Tensor, coefficients: Tensor) -> bool:
    return fits(H, H.shape[1], coefficients)


def _of_write(H: Tensor, y: Tensor, post: Tensor) -> bool:
    return _of_streams(H, post) and y.dtype in (H.dtype, torch.float32)


def _rows(options: ReadOptions) -> tuple[int, ...]:
    """The first of t's rows that pre, post and res are predicted from, -1 without; and their number."""
    pre, post, res = options.sizes
    return 0 if pre else -1, pre if post else -1, pre + post if res else -1, pre + post + res


def _map(options: ReadOptions) -> tuple[int, ...]:
    """How res is made: logits transposed, matrix transposed, steps after the first softmax, epsilon."""
    turned = options.orientation
    return turned != "paper", turned == "column_last", 2 * options.iterations - 1, EPS[options.sinkhorn_eps]
