"""mHC's read and every connection's write on Triton. Signatures as in torch_path.

Streams are bf16, fp16 or fp32; phi, scale, bias and all coefficients fp32. A read's own projection of bf16 streams is
exact (triton_projection.py); after a fold, in the backward, for fp16 and for tokens that are scaled it runs in TF32, in
which 16-bit streams are exact and phi is not; of fp32 streams in full fp32. Every sum has one order:
results repeat bit for bit on the same kind of device. (The order in which phi's gradient is summed over tokens follows
from the number of multiprocessors, so another kind of device rounds it differently.)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hcmegatron.kernels import tiles, torch_hyper
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.read_function import Projection, ReadFunction
from hcmegatron.kernels.write_function import WriteFunction


def read(
    H: Tensor,
    phi: Tensor,
    scale: Tensor | Sequence[Tensor],
    bias: Tensor | Sequence[Tensor],
    options: ReadOptions,
    projection: Projection | None = None,
    mix: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """mHC's read, as torch_path.read; `projection` as `write_and_project` returned it saves a pass over H.

    With a mix, x is formed by torch beside the kernels, which form another one for nobody: right, and not fast.

    Raises ValueError for streams of another type than bf16, fp16 and fp32.
    """
    tiles.check(H)
    sizes = [size for size in options.sizes if size]
    parts = [p.split(sizes) if isinstance(p, Tensor) else p for p in (scale, bias)]
    contiguous = (p.contiguous() for part in parts for p in part)
    x, *others, H = ReadFunction.apply(H.contiguous(), phi.contiguous(), options, projection, *contiguous)
    if mix is not None:
        x, H = torch_hyper.mix(H, mix.unsqueeze(1))
        x = x.squeeze(1)
    return x, *others, H


def write(
    H: Tensor, y: Tensor, post: Tensor, res: Tensor | None, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Every connection's write, as torch_path.write, bias and dropout in the same pass."""
    return _write(H, y, post, res, bias, dropout, None)[0]


def write_and_project(
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor | None,
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
    H: Tensor,
    y: Tensor,
    post: Tensor,
    res: Tensor | None,
    bias: Tensor | None,
    dropout: float,
    fold: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    tiles.check(H)
    bias = None if bias is None else bias.contiguous()
    whole = (t.contiguous() for t in (H, y, post))
    res = None if res is None else res.contiguous()
    return WriteFunction.apply(*whole, res, bias, dropout, fold)
