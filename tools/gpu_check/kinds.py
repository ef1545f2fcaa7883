"""Every kind of connection on a device: its kernels beside torch's, and what it costs in a layer; Muon's update."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tools.gpu_check.worker import Child, PhaseContext

SUMS = 1e-4  # by which fp32 results differ in the order of their sums
TIMES = 2.0  # the error of torch's own path that Triton's may have with streams of bf16
# Of all gradients' norm, by precision: a tensor whose own is smaller is compared with this. The first layer's streams
# are equal, so that what mixes them has a gradient that is all rounding, or much of it.
FLOORS = {"fp32": 1e-2, "bf16": 1e-1}
NOISE = 0.02  # added to every weight, so that what begins at zero has gradients and influence
TIMED = (("shc", "dhc", "sfc", "dfc"), ("mhc_lite", "krom", "ihc", "gr"))  # mhc is in the phase `layer`
LOSS = "the loss"
REPEATING = 60  # milliseconds that an operation is timed for
LONGEST = 12  # kernels in the report


def kinds(work: PhaseContext) -> None:
    """A process for each: their kernels are many to compile."""
    from hcmegatron.connections.kinds import KINDS

    named = [name for name, one in KINDS.items() if one.kernels]
    few = named[:: len(named) - 1] if work.miniature else named
    work.children(*(Child(kind, f"{__name__}:one_kind", arguments={"kind": kind}) for kind in few))


def one_kind(work: PhaseContext) -> None:
    """Loss and gradients of a dense network of two layers with Triton's kernels: beside torch's in fp32; with streams
    of bf16 the error of both, beside those in fp32."""
    interpreter(work)
    from hcmegatron.platform.distributed import process_groups

    kind = work.arguments["kind"]
    weights: dict[str, Tensor] = {}

    def found(kernels: str, dtype: str) -> dict[str, Tensor]:
        return loss_and_gradients(small(kind, kernels, dtype, work.miniature), groups, weights)

    with process_groups(small("residual", "auto", "fp32", work.miniature), alone()) as groups:
        exact = found("torch", "fp32")
        apart, where = difference(found("triton", "fp32"), exact, FLOORS["fp32"])
        what = "loss and gradients of Triton's kernels"
        work.check(f"{kind}, fp32: {what}", apart <= SUMS, f"apart by {apart:.1e} at most, in {where}")
        if work.miniature:
            return
        (mine, where), (theirs, _) = (
            difference(found(kernels, "bf16"), exact, FLOORS["bf16"]) for kernels in ("triton", "torch")
        )
        detail = f"apart by {mine:.1e} at most, in {where}; torch's by {theirs:.1e}"
        work.check(f"{kind}, bf16: {what}", mine <= TIMES * theirs, detail)


def connections(work: PhaseContext) -> None:
    """Times: of operations, of layers, of the update."""
    interpreter(work)
    operations(work)
    for group in TIMED:
        costs(work, group)
    updates(work)


def interpreter(work: PhaseContext) -> None:
    """Triton's, before any kernel is defined, where there is no GPU."""
    if work.miniature:
        os.environ["TRITON_INTERPRET"] = "1"


def alone() -> Any:
    """The only rank."""
    from hcmegatron.platform.ranks import RankInfo, free_port

    return RankInfo(0, 1, 0, 1, "127.0.0.1", free_port(), "check")


def small(kind: str, kernels: str, dtype: str, miniature: bool) -> Any:
    """Two dense layers on one rank."""
    from hcmegatron.config import check_config
    from hcmegatron.config.load import load_config

    width, length = (32, 16) if miniature else (512, 256)
    settings = {
        "connection.kind": kind,
        "kernels": kernels,
        "model.layers": 2,
        "model.hidden_size": width,
        "model.heads": 2,
        "model.ffn_hidden_size": 2 * width,
        "moe.experts": 0,
        "parallel.pipeline": 1,
        "parallel.schedule": "megatron_1f1b",
        "data.sequence_length": length,
        "training.micro_batch": 2,
        "training.global_batch": 2,
        "training.threads": 1,
        "training.dtype": dtype,
    }
    config = load_config("configs/quickstart.yaml", [f"--{key}={value}" for key, value in settings.items()])
    check_config(config)
    return config


def loss_and_gradients(config: Any, groups: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By name, in fp64 on the CPU. weights: all of them, filled where empty: the initial ones with noise, rounded to
    bf16, so that they are the same numbers in every precision."""
    from hcmegatron.platform.distributed import device
    from tools.bench_layer import VOCABULARY, network

    chunk = network(config, groups)
    generator = torch.Generator().manual_seed(2)
    named = {
        name.replace("module.", ""): weight for name, weight in chunk.named_parameters()
    }  # by any wrappers
    if not weights:
        for name, weight in named.items():
            noise = NOISE * torch.randn(weight.shape, generator=generator)
            weights[name] = (weight.detach().cpu() + noise).bfloat16()
    with torch.no_grad():
        for name, weight in named.items():
            weight.copy_(weights[name])
    shape = config.training.micro_batch, config.data.sequence_length
    tokens = torch.randint(VOCABULARY, shape, generator=generator.manual_seed(3)).to(device())
    positions = torch.arange(shape[1], device=device()).expand(*shape)
    chunk.zero_grad_buffer()
    loss = chunk(tokens, positions, None, labels=tokens).mean()
    loss.backward()
    gradients = {name: weight.main_grad for name, weight in named.items()}
    return {
        name: tensor.detach().double().cpu().clone() for name, tensor in {LOSS: loss, **gradients}.items()
    }


def difference(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], floor: float) -> tuple[float, str]:
    """The largest of all tensors' relative differences by norm, and whose it is; floor: of all norms. Pure."""
    norms = [exact.norm() for name, exact in theirs.items() if name != LOSS]
    least = floor * float(torch.stack(norms).norm())
    apart = {
        name: float((mine[name] - exact).norm() / max(float(exact.norm()), least))
        for name, exact in theirs.items()
    }
    worst = max(apart, key=lambda name: math.inf if math.isnan(apart[name]) else apart[name])
    return apart[worst], worst


def operations(work: PhaseContext) -> None:
    """Kernels of other kinds than mHC by themselves, beside a copy of the fewest bytes."""
    from tools import bench_kernels

    n, C, T = (4, 16, 8) if work.miniature else (4, 2560, 8192)
    dtype = torch.float32 if work.miniature else torch.bfloat16
    copy = bench_kernels.copy_bandwidth(work.device)
    for name, (elements, run) in calls(n, C, T, dtype, work.device).items():
        taken = 1e-3 * bench_kernels.milliseconds(run, work.device, 1 if work.miniature else REPEATING)
        work.figure(f"{name}, n={n}, C={C}, {T} tokens", 1e6 * taken, "us")
        least = elements * C * T * dtype.itemsize / copy
        work.figure(f"{name}, n={n}, C={C}, {T} tokens: of copy speed", 100 * least / taken, "%")


def calls(
    n: int, C: int, T: int, dtype: torch.dtype, device: str
) -> dict[str, tuple[int, Callable[[], object]]]:
    """By name: how many elements of C a token is moved at least, and the call. Backwards keep their graph."""
    from hcmegatron.kernels.options import ReadOptions
    from hcmegatron.kernels.select import select_kernels

    kernels = select_kernels("triton", n=n, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int, by: float = 1.0, wide: bool = True) -> Tensor:
        made = by * torch.randn(shape, generator=generator)
        return made.to(device, torch.float32 if wide else dtype).requires_grad_()

    H, y = drawn(T, n, C, wide=False), drawn(T, 1, C, wide=False)
    found: dict[str, tuple[int, Callable[[], object]]] = {}

    def add(name: str, elements: tuple[int, int], run: Callable[[], Any], leaves: list[Tensor]) -> None:
        """run gives an output, or those of a read, whose second, pre or the gates' shares, is nobody else's."""
        outputs = run()
        outputs = [outputs] if isinstance(outputs, Tensor) else [outputs[0], *outputs[2:]]
        outputs = [one for one in outputs if one.requires_grad]
        given = [torch.randn_like(one) for one in outputs]
        found[name] = elements[0], run
        found[f"{name} backward"] = (
            elements[1],
            lambda: torch.autograd.grad(outputs, leaves, given, retain_graph=True),
        )

    def gated() -> tuple[Tensor, ...]:
        x, s, shares, R = kernels.gated_read(H, *gates, 1e-6)
        return x, shares, s, R

    reads = 2 * n + 1, 4 * n + 2  # streams twice and x; twice, their gradient in and out, and dx twice
    for words, options in {
        "mhc_lite's read": ReadOptions(n, res_map="permutations"),
        "krom's read": ReadOptions(n, res_map="kronecker"),
        "mhc's read": ReadOptions(n),
        "mhc's read, implicit": ReadOptions(n, sinkhorn_backward="implicit"),
        "ihc's read": ReadOptions(n, use_res=False),
    }.items():
        K = options.columns
        leaves = [H, drawn(n * C, K, by=(n * C) ** -0.5), drawn(K, by=0.1), drawn(K)]
        add(words, reads, lambda leaves=leaves, o=options: kernels.read(*leaves, o), leaves)
    post = drawn(T, n)
    add("ihc's write", (2 * n + 1, n + 2), lambda: kernels.write(H, y, post, None), [H, y, post])
    r = max(C // 8, 1)  # gate_rank, where none is given
    gates = [drawn(n, C), drawn(n * C, r, by=0.02), drawn(r, n * C), drawn(n * C, n, by=0.02)]
    add("gr's read", reads, gated, [H, *gates])
    return found


def costs(work: PhaseContext, group: tuple[str, ...]) -> None:
    """A layer with each of these, over the residual's, which is built for every group: all at once would fill a GPU."""
    from tools import bench_layer

    load = bench_layer.Load(16 if work.miniature else bench_layer.default_tokens())
    forms = bench_layer.forms_of(group)
    tell_forms(work, bench_layer.measure(load, 1 if work.miniature else 12, forms, profiled=True))
    release(work)


def release(work: PhaseContext) -> None:
    """The memory of networks that nobody holds."""
    gc.collect()
    if not work.miniature:
        torch.cuda.empty_cache()


def tell_forms(work: PhaseContext, found: Any, given: str = "") -> None:
    """Rows of what tools.bench_layer has measured; `given` says in words of what."""
    for name, one in found.forms.items():
        form = f"{name}{given}"
        work.figure(f"{form}: forward and backward", 1e3 * one.seconds, "ms")
        work.figure(f"{form}: the host, until all is enqueued", 1e3 * one.host, "ms")
        work.figure(f"{form}: time over the residual's", one.ratio)
        work.figure(f"{form}: kept for backward", one.kept / 2**20, "MiB")
        # the rate of the network's own products: neither connections nor recomputation count
        work.figure(f"{form}: rate", found.tflops / one.ratio, "TFLOP/s")
        if one.kernels:
            busy = sum(kernel.milliseconds for kernel in one.kernels)
            work.figure(f"{form}: all kernels and copies", busy, "ms of the device")
            work.figure(f"{form}: launches", sum(kernel.calls for kernel in one.kernels))
        for kernel in one.kernels[:LONGEST]:
            work.figure(
                f"{form}: {kernel.calls} x {kernel.name[:120]}", kernel.milliseconds, "ms of the device"
            )


def updates(work: PhaseContext) -> None:
    """Seconds of an optimizer's step on the weights of such a layer, as on one of eight ranks: AdamW's and Muon's."""
    import statistics

    from hcmegatron.platform.distributed import process_groups
    from hcmegatron.training.optimizer import build_optimizer
    from tools import bench_layer
    from tools.alternate import alternating

    # an eighth of the experts: two optimizers of all 72 did not fit an H100
    share = 2 if work.miniature else 8
    config = bench_layer.configuration("mhc", "none", bench_layer.Load(16, share=share))
    with process_groups(config, alone()) as groups:
        steps = {}
        for name in ("adamw", "muon"):
            config.optimizer.name = name
            chunk = bench_layer.network(config, groups)
            optimizer = build_optimizer(config, [chunk], groups)
            for weight in chunk.parameters():
                weight.main_grad.normal_(0.0, 1e-3)

            def step(optimizer: Any = optimizer) -> None:
                optimizer.step()
                if not work.miniature:
                    torch.cuda.synchronize()

            steps[name] = step
        times = alternating(steps, 1 if work.miniature else 5)
    for name, seconds in times.items():
        work.figure(f"{name}: an update of the layer, of eight ranks", 1e3 * statistics.median(seconds), "ms")
