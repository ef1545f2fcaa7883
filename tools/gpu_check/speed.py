"""Times and memory on a device, by the project's own benchmarks: kernels, tiles, a layer, recomputation."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tools.gpu_check.kinds import interpreter, release, tell_forms
from tools.gpu_check.worker import PhaseContext

SHAPES = {
    False: ((4, 2560, 8192), (4, 7168, 8192), (4, 2560, 4096)),
    True: ((4, 16, 8),),
}  # n, C, tokens; by: miniature
COMPILED = "compile"  # last of all: it takes longest to begin
REPEATING = 60  # milliseconds that a kernel is timed for
ENOUGH = 8.0  # seconds that have to be left for another candidate
# Of the 27B model's width; few enough weights that a CPU draws those of all modes in seconds.
STACK = (
    *("--model.hidden_size=2560", "--model.heads=20", "--model.ffn_hidden_size=2560", "--model.layers=4"),
    *("--data.sequence_length=4096", "--training.dtype=bf16"),
)
SMALL_STACK = ("--model.hidden_size=16", "--model.heads=2", "--model.ffn_hidden_size=32", "--model.layers=4")


def kernels(work: PhaseContext) -> None:
    """Errors against fp64 first; then times, ours first and the compiler's last."""
    interpreter(work)
    from tools import bench_kernels
    from tools.bench_kernels import copy_bandwidth
    from tools.mhc_peers import CANDIDATES, Unavailable

    dtypes = (torch.float32,) if work.miniature else (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        errors(work, dtype)
    copy = copy_bandwidth(work.device)
    work.figure("copy", copy / 1e9, "GB/s")
    dtype = torch.float32 if work.miniature else torch.bfloat16
    ordered = sorted(CANDIDATES, key=lambda key: key == COMPILED)
    for key in ordered:
        for n, C, T in SHAPES[work.miniature]:
            where = f"n={n}, C={C}, {T} tokens"
            if work.left() < ENOUGH and not work.miniature:
                work.skipped(f"{key}, {where}", f"{work.left():.0f} s were left")
                continue
            if key == COMPILED and work.miniature:
                work.skipped(key, "the compiler is left out in miniature")
                break
            try:
                rows = bench_kernels.measure(
                    key, n, C, T, dtype, work.device, copy, 1 if work.miniature else REPEATING
                )
            except Unavailable as reason:
                work.skipped(key, reason)
                break
            except Exception as error:
                if key in ("triton", "torch"):
                    raise
                work.skipped(
                    f"{key}, {where}", f"failed: {type(error).__name__}: {error}"
                )  # a peer's own matter
                break
            for row in rows:
                work.figure(f"{row.candidate}, {row.operation}, {where}", row.microseconds, "us")
                work.figure(
                    f"{row.candidate}, {row.operation}, {where}: of copy speed", row.percent_of_copy, "%"
                )
            work.figure(f"{rows[0].candidate}, {where}: kept", rows[0].kept_bytes_per_token, "bytes a token")


def errors(work: PhaseContext, dtype: torch.dtype) -> None:
    """The largest error of every output and gradient, of the largest entry; no more than twice the torch path's, or
    a few roundings."""
    from hcmegatron.kernels import torch_path
    from hcmegatron.kernels.select import select_kernels

    n, C, T = (4, 16, 5) if work.miniature else (4, 2560, 256)
    leaves = inputs(n, C, T, dtype, work.device)
    exact = sub_layer(torch_path, [leaf.detach().double().requires_grad_() for leaf in leaves], n)
    ours = sub_layer(select_kernels("triton", n=n, device=work.device, dtype=dtype), leaves, n)
    theirs = sub_layer(torch_path, leaves, n)
    # Phi's part of the projection has TF32's ten bits on 16-bit streams.
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 2.0**-20
    for name, truth in exact.items():
        own, other = (_error(found[name], truth) for found in (ours, theirs))
        what = f"{name} against fp64, {str(dtype).removeprefix('torch.')}"
        work.figure(f"{what}: error", own)
        work.check(what, own <= max(2 * other, 4 * rounding), f"error {own:.1e}, in torch {other:.1e}")


def inputs(n: int, C: int, T: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """H [T, n, C] of this dtype; phi, scale and bias of fp32. Leaves."""
    generator = torch.Generator().manual_seed(0)
    K = n * n + 2 * n
    phi = torch.randn(n * C, K, generator=generator) * (n * C) ** -0.5
    scale, bias = 1 + 0.3 * torch.randn(K, generator=generator), torch.randn(K, generator=generator)
    H = torch.randn(T, n, C, generator=generator).to(dtype)
    return [leaf.to(device).requires_grad_() for leaf in (H, phi, scale, bias)]


def sub_layer(path: Any, leaves: list[Tensor], n: int) -> dict[str, Tensor]:
    """Outputs and gradients of a read, an elementwise function, and a write."""
    from hcmegatron.kernels.options import ReadOptions

    x, pre, post, res, streams = path.read(*leaves, ReadOptions(n))
    out = path.write(streams, torch.tanh(x).unsqueeze(1), post, res)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    gradients = torch.autograd.grad((out.double() * weights).sum(), leaves)
    values = (x, pre, post, res, out, *gradients)
    return dict(zip(("x", "pre", "post", "res", "H'", "dH", "dphi", "dscale", "dbias"), values, strict=True))


def _error(found: Tensor, truth: Tensor) -> float:
    return float((found.detach().double() - truth.detach()).abs().max() / truth.abs().max())


class _NoTime(Exception):
    """Left for another tile."""


def tiles(work: PhaseContext) -> None:
    """Every kernel's time by tile, the rule's first, and the fastest ones in tiles.json: kernels.tuning, watched."""
    interpreter(work)
    from hcmegatron.kernels import tiles as chosen
    from hcmegatron.kernels import tuning
    from tools import bench_kernels

    n, C, T = SHAPES[work.miniature][0]
    dtype = torch.float32 if work.miniature else torch.bfloat16
    keep, around, tried = chosen.keep, tuning.around, []

    def kept(key: Any, tile: Any) -> None:
        tried.append((key, tile))
        keep(key, tile)

    def clock(run: Callable[[], Any]) -> float:
        if work.left() < 3:
            raise _NoTime
        taken = bench_kernels.milliseconds(run, work.device, 1 if work.miniature else REPEATING)
        key, tile = tried[-1]
        first = [one for one, _ in tried].index(key) == len(tried) - 1
        words = ", ".join(f"{name} {value}" for name, value in vars(tile).items())
        work.figure(f"{_values(key)[0]}: {words}{', the rule' if first else ''}", 1e3 * taken, "us")
        return taken

    def few(*key: Any) -> list[Any]:
        return list(around(*key))[: 2 if work.miniature else None]

    with mock.patch.object(chosen, "keep", kept), mock.patch.object(tuning, "around", few):
        file = work.folder.parent / "tiles.json"
        try:
            tuning.tune(n, C, dtype, tokens=T, device=work.device, time=clock, file=file)
        except _NoTime:
            work.skipped("further tiles", f"no time was left at {_values(tried[-1][0])[0]}")


def _values(key: Any) -> list[Any]:
    """Of a tile's key: the kernel's name is the first."""
    return list(vars(key).values())


def layer(work: PhaseContext) -> None:
    """tools.bench_layer's forms, with all experts on the device, and as on one of eight expert-parallel ranks."""
    from tools import bench_layer

    tokens, rounds = (32, 1) if work.miniature else (bench_layer.default_tokens(), 12)
    loads = {
        "": bench_layer.Load(tokens),
        ", of eight ranks": bench_layer.Load(tokens, sequences=2, share=2 if work.miniature else 8),
    }
    for words, load in loads.items():
        tell_forms(work, bench_layer.measure(load, rounds, profiled=True), words)
        release(work)


def memory(work: PhaseContext) -> None:
    """tools.bench_recompute's modes."""
    from tools import bench_recompute

    stack = [*SMALL_STACK, "--data.sequence_length=16"] if work.miniature else list(STACK)
    found = bench_recompute.measure(bench_recompute.configurations(stack), 1 if work.miniature else 5)
    for name, held in found.held.items():
        work.figure(f"{name}: connections and norms keep", held.around / 2**20, "MiB")
        work.figure(f"{name}: all activations keep", held.everything / 2**20, "MiB")
        work.figure(f"{name}: most of them", held.peak / 2**20, "MiB")
        if name in found.allocated:
            work.figure(f"{name}: most that the allocator gave out", found.allocated[name] / 2**20, "MiB")
        work.figure(f"{name}: a step", 1e3 * statistics.median(found.seconds[name]), "ms")
