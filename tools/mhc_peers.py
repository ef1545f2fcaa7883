"""mHC's sub-layer (T left out) by everyone who has one: our kernels, plain torch, torch.compile and installed
peers.

A candidate is made for (n, C, dtype, device) and gives `read(H) -> (x, held)` and `write(H, y, held) -> H'`
on streams H [T, n, C]. Peers differ in layout, epsilon and the axis they normalise last; what is compared is
the time and the memory of the same amount of work, each in the layout it was written for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hcmegatron.connections.manifold import project, residual_matrix
from hcmegatron.connections.mixing import aggregate, mix_and_add
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.select import select_kernels


class Unavailable(Exception):
    """Why a candidate cannot run here."""


@dataclass
class Peer:
    """One way to run the sub-layer. `parameters` are the leaves beside the streams."""

    name: str
    parameters: list[Tensor]
    read: Callable[[Tensor], tuple[Tensor, Any]]
    write: Callable[[Tensor, Tensor, Any], Tensor]
    streams: Callable[[Tensor], Tensor] = lambda H: H  # from [T, n, C] to its own layout
    fold: Callable[..., Any] | None = None  # write_and_project
    read_folded: Callable[..., Any] | None = None


def _parameters(n: int, C: int, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    K = n * n + 2 * n
    generator = torch.Generator().manual_seed(0)
    phi = (torch.randn(n * C, K, generator=generator) * (n * C) ** -0.5).to(device, dtype)
    scale, bias = torch.full((K,), 0.01, device=device), torch.randn(K, generator=generator).to(device)
    return [t.requires_grad_() for t in (phi, scale, bias)]


def ours(name: str) -> Callable[..., Peer]:
    """hcmegatron's kernels `name`."""

    def make(n: int, C: int, dtype: torch.dtype, device: str) -> Peer:
        try:
            kernels = select_kernels(name, n=n, device=device, dtype=dtype)
        except ValueError as error:
            raise Unavailable(str(error)) from error
        if name == "triton" and device == "cpu":
            raise Unavailable("the interpreter's time says nothing")
        phi, scale, bias = _parameters(n, C, device)
        options = ReadOptions(n)

        def read(H: Tensor, projection: Any = None) -> tuple[Tensor, Any]:
            folded = () if projection is None else (projection,)
            x, _, post, res, streams = kernels.read(H, phi, scale, bias, options, *folded)
            return x, (post, res, streams)

        def write(H: Tensor, y: Tensor, held: Any) -> Tensor:
            post, res, streams = held
            return kernels.write(streams, y.unsqueeze(1), post, res)

        def fold(H: Tensor, y: Tensor, held: Any) -> Any:
            post, res, streams = held
            return kernels.write_and_project(streams, y.unsqueeze(1), post, res, phi)

        made = Peer(f"hcmegatron {name}", [phi, scale, bias], read, write)
        if kernels.write_and_project:
            made.fold, made.read_folded = fold, read
        return made

    return make


def eager(compiled: bool) -> Callable[..., Peer]:
    """The formulas of hcmegatron.connections under autograd, or under torch.compile."""

    def make(n: int, C: int, dtype: torch.dtype, device: str) -> Peer:
        phi, scale, bias = _parameters(n, C, device)
        options = ReadOptions(n)

        def read(H: Tensor) -> tuple[Tensor, Any]:
            l_pre, l_post, l_res = (scale * project(H, phi, "none", 0.0) + bias).split(options.sizes, -1)
            res = residual_matrix(l_res.unflatten(-1, (n, n)), options.iterations, "none", "paper")
            return aggregate(H, torch.sigmoid(l_pre)), (2 * torch.sigmoid(l_post), res)

        def write(H: Tensor, y: Tensor, held: Any) -> Tensor:
            return mix_and_add(H, y.unsqueeze(1), *held)

        if compiled:
            if device == "cpu" and not _has_compiler():
                raise Unavailable("torch.compile needs a C++ compiler on the CPU")
            read, write = torch.compile(read), torch.compile(write)
        name = "torch.compile" if compiled else "torch eager"
        return Peer(name, [phi, scale, bias], read, write)

    return make


def _has_compiler() -> bool:
    import shutil

    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def _imported(module: str, package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise Unavailable(f"{package} is not installed")
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a peer raises on import is its reason
        raise Unavailable(f"{module}: {error}") from error


def liger(n: int, C: int, dtype: torch.dtype, device: str) -> Peer:
    """Liger-Kernel (LigerMHC's three functions)."""
    ops = _imported("liger_kernel.transformers.functional", "liger_kernel")
    if not hasattr(ops, "liger_mhc_coeffs"):
        raise Unavailable("this Liger-Kernel has no mHC")
    if device == "cpu":
        raise Unavailable("Liger-Kernel's mHC needs a GPU")
    phi, _, bias = _parameters(n, C, device, torch.float16 if dtype == torch.float16 else torch.bfloat16)
    alphas = [torch.tensor(0.01, device=device, requires_grad=True) for _ in range(3)]

    def read(H: Tensor) -> tuple[Tensor, Any]:
        pre, post, res = ops.liger_mhc_coeffs(
            H, phi, bias, *alphas, allow_fp32=H.dtype == torch.float32, tmax=20
        )
        return ops.liger_mhc_pre(H, pre).to(dtype), (post, res)

    def write(H: Tensor, y: Tensor, held: Any) -> Tensor:
        return ops.liger_mhc_post_res(H, y, *held)

    return Peer("Liger-Kernel", [phi, bias, *alphas], read, write)


def transformer_engine(n: int, C: int, dtype: torch.dtype, device: str) -> Peer:
    """Transformer Engine's Triton kernels. Its streams are [1, T, C, n]: streams innermost."""
    ops = _imported("transformer_engine.pytorch.triton.mhc", "transformer_engine")
    if device == "cpu" or n != 4:
        raise Unavailable("Transformer Engine's mHC needs a GPU and n = 4")
    if not hasattr(ops, "mhc_fused_projection"):
        raise Unavailable("this Transformer Engine has an older mHC interface")
    phi, _, bias = _parameters(n, C, device)
    phi = phi.detach().mT.contiguous().requires_grad_()
    bias = bias.detach().unsqueeze(0).requires_grad_()
    alpha = torch.full((3,), 0.01, device=device, requires_grad=True)

    def read(H: Tensor) -> tuple[Tensor, Any]:
        T = H.shape[1]
        projected, mean_square = ops.mhc_fused_projection(H.view(T, C * n), phi)
        pre, post, res = ops.mhc_fused_scale(projected, alpha, bias, mean_square, n)
        res = ops.mhc_fused_sinkhorn(res.view(1, T, n, n), n, iters=20)
        return ops.mhc_fused_aggregate(H, pre.view(1, T, n), n).view(T, C), (post.view(1, T, n), res)

    def write(H: Tensor, y: Tensor, held: Any) -> Tensor:
        post, res = held
        return ops.mhc_fused_expand_combine(y.view(1, -1, C), None, post, H, res, n, True)

    def streams(H: Tensor) -> Tensor:
        return H.mT.contiguous().unsqueeze(0)

    return Peer("Transformer Engine", [phi, bias, alpha], read, write, streams)


def tile_kernels(n: int, C: int, dtype: torch.dtype, device: str) -> Peer:
    """DeepSeek's TileKernels. Streams are [1, T, n, C], bf16."""
    ops = _imported("tile_kernels.modeling.mhc.ops", "tile_kernels")
    if device == "cpu" or n != 4 or dtype != torch.bfloat16:
        raise Unavailable("TileKernels' mHC needs a GPU, n = 4 and bf16")
    if torch.cuda.get_device_capability()[0] not in (9, 10):
        raise Unavailable("TileKernels needs sm_90 or sm_100")
    phi, _, bias = _parameters(n, C, device)
    rows = torch.zeros(32, n * C, device=device)  # its projection reads 32 rows of the 24
    rows[:24] = phi.detach().mT
    rows.requires_grad_()
    scale = torch.full((3,), 0.01, device=device, requires_grad=True)

    def read(H: Tensor) -> tuple[Tensor, Any]:
        mixes = ops.mhc_pre_norm_fn(H, rows[:24], None, 1e-6, fuse_grad_acc=False)
        pre, post, res = ops.mhc_pre_split_mixes(mixes, scale, bias, n, 2.0, 0.0)
        res = ops.sinkhorn_normalize(res, repeat=20, eps=1e-6)
        return ops.mhc_pre_apply_mix(H, pre).view(-1, C), (post, res)

    def write(H: Tensor, y: Tensor, held: Any) -> Tensor:
        return ops.mhc_post(y.view(1, -1, C), H, *held)

    return Peer("TileKernels", [rows, scale, bias], read, write, lambda H: H.unsqueeze(0))


CANDIDATES: dict[str, Callable[..., Peer]] = {
    "triton": ours("triton"),
    "torch": ours("torch"),
    "eager": eager(False),
    "compile": eager(True),
    "liger": liger,
    "te": transformer_engine,
    "tile_kernels": tile_kernels,
}
