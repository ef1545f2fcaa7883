"""Measured tiles for the Triton kernels: found on request, kept per device and shape, never sought in a
launch.

`tune` times a few tiles around the rule's for every kernel of one shape and writes the winners to a file in
Triton's cache directory; `restore` reads it when kernels are selected. A training step only looks up.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter as clock
from typing import Any

import torch
import triton

from hcmegatron.kernels import tiles, triton_path
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.tiles import Key, Tile

TUNED = {  # kernel: the operation that is timed for it
    "write_forward": "write",
    "write_backward": "write backward",
    "write_fold": "fold",
    "project": "read",
    "read_forward": "folded read",
    "read_backward_coefficients": "read backward",
    "read_backward_streams": "read backward",
}


def around(key: Key) -> Iterator[Tile]:
    """The rule's tile, then variations: warps, stages, half and double the channels or the tokens, and how many
    programs tokens are split for."""
    kernel, first = key.kernel, tiles.rule(key)
    variations = [first, *(replace(first, warps=w, registers=None) for w in (2, 4, 8) if w != first.warps)]
    if kernel == "read_backward_streams":
        variations += [replace(first, per_sm=p) for p in (1, 2, 3, 4) if p != first.per_sm]
    variations += [replace(first, stages=s) for s in (1, 2, 3, 4) if s != first.stages]
    if kernel.startswith("write_") and kernel != "write_fold":
        variations += [replace(first, BT=2 * first.BT), replace(first, BT=2 * first.BT, warps=8)]
    else:
        variations += [replace(first, BC=BC) for BC in (first.BC // 2, 2 * first.BC) if 16 <= BC <= 256]
        variations += [replace(first, BT=2 * first.BT), replace(first, BT=2 * first.BT, warps=8)]
    yield from dict.fromkeys(variations)


def tune(
    n: int,
    C: int,
    dtype: torch.dtype,
    *,
    tokens: int = 8192,
    device: str = "cuda",
    time: Callable[[Callable[[], Any]], float] | None = None,
    file: Path | None = None,
) -> dict[str, Tile]:
    """Find, keep and return the fastest tile of every kernel for n streams of C channels of dtype.

    time: seconds (or any measure) of a call, by default what the device takes. A tile that does not compile or
    does not fit the device loses. Takes minutes: call it before training, or from tools.bench_kernels --tune.
    """
    measure = time or device_milliseconds
    calls = _operations(n, C, dtype, tokens, device)
    capability = tiles.hardware(torch.device(device)).capability
    best: dict[Key, Tile] = {}
    for kernel, operation in TUNED.items():
        key = Key(kernel, n, C, dtype.itemsize, capability)
        results: list[tuple[float, int, Tile]] = []
        for order, candidate in enumerate(around(key)):
            tiles.keep(key, candidate)
            try:
                results.append((measure(calls[operation]), order, candidate))
            except (triton.runtime.errors.OutOfResources, triton.compiler.errors.CompilationError):
                continue
        if not results:
            raise RuntimeError(f"no tile of {kernel} runs for n={n}, C={C}, {dtype} on this device")
        best[key] = min(results)[2]
        tiles.keep(key, best[key])
    _save(file or _file(device), best)
    return {key.kernel: tile for key, tile in best.items()}


def device_milliseconds(run: Callable[[], Any], repeating: int = 100) -> float:
    """What the device takes. It is kept busy until the host has enqueued the whole call: else a call of several short
    kernels would show how fast the host is."""
    run()
    torch.cuda.synchronize()
    host = min(_seconds(run) for _ in range(2))
    emptied = torch.empty(2**28, dtype=torch.int8, device="cuda")
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    cycles = 1e3 * device.clock_rate  # a second, at most
    ends = clock() + 1e-3 * repeating
    times: list[float] = []
    while len(times) < 5 or (clock() < ends and len(times) < 100):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        emptied.zero_()
        torch.cuda._sleep(int((2 * host + 1e-4) * cycles))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def _seconds(run: Callable[[], Any]) -> float:
    """Of the host, to enqueue a call."""
    start = clock()
    run()
    taken = clock() - start
    torch.cuda.synchronize()
    return taken


def restore(device: str = "cuda", file: Path | None = None) -> int:
    """Take over the tiles that were tuned for this device earlier; returns how many."""
    path = file or _file(device)
    kept = _read(path)
    for key, tile in kept.items():
        tiles.keep(key, tile)
    return len(kept)


def _file(device: str) -> Path:
    """One file per kind of device, Triton version and form of the table: tiles of another device or version would
    still be right, but not the fastest."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return (
        Path(triton.knobs.cache.dir) / f"hcmegatron-tiles3-{name.replace(' ', '-')}-{triton.__version__}.json"
    )


def _read(path: Path) -> dict[Key, Tile]:
    """The table in a file: entries {kernel, n, C, element_size, capability, tile}; empty where there is none."""
    entries = json.loads(path.read_text()) if path.exists() else []
    return {Key(**{k: v for k, v in e.items() if k != "tile"}): Tile(**e["tile"]) for e in entries}


def _save(path: Path, best: dict[Key, Tile]) -> None:
    entries = [{**asdict(key), "tile": asdict(tile)} for key, tile in {**_read(path), **best}.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}")  # several ranks may tune at once: replace whole files
    draft.write_text(json.dumps(entries, indent=1))
    draft.replace(path)


def _operations(n: int, C: int, dtype: torch.dtype, T: int, device: str) -> dict[str, Callable[[], Any]]:
    """Every operation as a call on random data; backwards keep their graph."""
    options = ReadOptions(n)
    K = options.columns
    H, dH = (torch.randn(T, n, C, device=device).to(dtype) for _ in range(2))
    y, dx = (torch.randn(T, C, device=device).to(dtype) for _ in range(2))
    phi = torch.randn(n * C, K, device=device) * (n * C) ** -0.5
    scale, bias = torch.full((K,), 0.01, device=device), torch.randn(K, device=device)
    read_leaves = [t.requires_grad_() for t in (H, phi, scale, bias)]
    x, _, post, res, streams = triton_path.read(*read_leaves, options)
    write_leaves = [t.detach().requires_grad_() for t in (H, y.unsqueeze(1), post, res)]
    out = triton_path.write(*write_leaves)
    held = [t.detach() for t in write_leaves]
    grads = [dx, torch.rand_like(post), torch.rand_like(res), dH]

    def grad(outputs: list[Any], leaves: list[Any], given: list[Any]) -> Any:
        return torch.autograd.grad(outputs, leaves, given, retain_graph=True)

    _, projection = triton_path.write_and_project(*held, phi)
    detached = [t.detach() for t in read_leaves]
    return {
        "read": lambda: triton_path.read(*detached, options),
        "folded read": lambda: triton_path.read(*detached, options, projection),
        "write": lambda: triton_path.write(*held),
        "fold": lambda: triton_path.write_and_project(*held, phi),
        "write backward": lambda: grad([out], write_leaves, [dH]),
        "read backward": lambda: grad([x, post, res, streams], read_leaves, grads),
    }
