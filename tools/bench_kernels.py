"""mHC's kernels by operation and as a whole sub-layer, beside plain torch and every installed peer.

    python -m tools.bench_kernels [--hidden 2560 4096 7168] [--tokens 4096 8192 16384 32768] [--tune] [--out
    bench_out]

Per operation: microseconds, bytes by the element plan, GB/s, per cent of the copy bandwidth measured in the
same run, and bytes a token kept for backward. The plan is the fewest stream elements that the algorithm
moves; who moves more shows fewer per cent. Writes kernels.csv and, where matplotlib is installed,
kernels.svg. On a CPU small shapes are timed in fp32, which tells nothing about GPUs.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.machine import Others, described
from tools.mhc_peers import CANDIDATES, Peer, Unavailable

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def plan(n: int) -> dict[str, int]:
    """Elements of C moved per token by each operation: reading x twice, and backward of the read in two
    passes."""
    read, write = 2 * n + 1, 2 * n + 1
    write_backward, read_backward = 3 * n + 2, 4 * n + 2
    return {
        "read": read,
        "write": write,
        "write backward": write_backward,
        "read backward": read_backward,
        "sub-layer": read + write,
        "sub-layer, folded": read + write - n,
        "sub-layer backward": read_backward + write_backward,
    }


@dataclass
class KernelTime:
    """One measurement."""

    candidate: str
    operation: str
    n: int
    C: int
    tokens: int
    microseconds: float
    bytes_planned: int
    gb_per_s: float
    percent_of_copy: float
    kept_bytes_per_token: float


def milliseconds(run: Callable[[], Any], device: str, repeating: int = 200) -> float:
    """Median time of a call, for `repeating` milliseconds; on a GPU the device's, with L2 emptied before each."""
    if device == "cuda":
        from hcmegatron.kernels.tuning import device_milliseconds

        return device_milliseconds(run, repeating)
    run()
    times = []
    for _ in range(max(1, 15 * repeating // 200)):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a large device copy, reads and writes counted."""
    source = torch.empty(2**30 if device == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / (1e-3 * milliseconds(lambda: target.copy_(source), device))


def kept_bytes(run: Callable[[], Any], known: list[Tensor]) -> int:
    """Bytes of storages saved for backward, the streams and parameters in `known` not counted."""
    storages: dict[int, int] = {}
    ignore = {t.untyped_storage().data_ptr() for t in known}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in ignore:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    del result
    return sum(storages.values())


def operations(made: Peer, H: Tensor, y: Tensor) -> dict[str, Callable[[], Any]]:
    """Every operation as a call on its own; backwards keep their graph."""
    C = y.shape[-1]
    leaves = [H, y, *made.parameters]

    def forward() -> tuple[Tensor, Tensor]:
        x, held = made.read(H)
        return x, made.write(H, y, held)

    x, held = made.read(H)
    detached = tuple(t.detach().requires_grad_(t.is_floating_point()) for t in held)
    written = made.write(H, y, detached)
    dx, dout = torch.randn_like(x), torch.randn_like(written)
    inputs = [t for t in (H, y, *detached) if t.requires_grad]
    whole = forward()
    read_out = [t for t in (x, *held) if (t.requires_grad and t.shape[-1] != C) or t is x]
    read_grads = [dx if t is x else torch.randn_like(t) for t in read_out]

    def grad(outs: Any, of: list[Tensor], grads: Any) -> Any:
        return torch.autograd.grad(outs, of, grads, retain_graph=True, allow_unused=True)

    calls: dict[str, Callable[[], Any]] = {
        "read": lambda: made.read(H),
        "write": lambda: made.write(H, y, detached),
        "write backward": lambda: grad(written, inputs, dout),
        "read backward": lambda: grad(read_out, [H, *made.parameters], read_grads),
        "sub-layer": forward,
        "sub-layer backward": lambda: grad(whole, leaves, (dx, dout)),
    }
    if made.fold is not None:
        projection = made.fold(H, y, held)[1]

        def folded() -> Any:
            held = made.read_folded(H, projection)[1]
            return made.fold(H, y, held)

        calls["sub-layer, folded"] = folded
    return calls


def measure(
    key: str, n: int, C: int, T: int, dtype: torch.dtype, device: str, copy: float, repeating: int = 200
) -> list[KernelTime]:
    """All operations of one candidate at one shape. Raises Unavailable."""
    made = CANDIDATES[key](n, C, dtype, device)
    generator = torch.Generator().manual_seed(1)
    H = made.streams(torch.randn(T, n, C, generator=generator).to(device, dtype)).requires_grad_()
    y = torch.randn(T, C, generator=generator).to(device, dtype).requires_grad_()
    calls = operations(made, H, y)
    kept = kept_bytes(calls["sub-layer"], [H, *made.parameters]) / T
    rows = []
    for operation, elements in plan(n).items():
        if operation in calls:
            ms = milliseconds(calls[operation], device, repeating)
            moved = elements * C * T * H.element_size()
            rate = moved / (1e-3 * ms)
            rows.append(
                KernelTime(
                    made.name, operation, n, C, T, 1e3 * ms, moved, rate / 1e9, 100 * rate / copy, kept
                )
            )
    return rows


def main() -> None:
    """Measure, print, write the table and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument("--hidden", type=int, nargs="+", default=[2560, 4096, 7168] if cuda else [128])
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[4096, 8192, 16384, 32768] if cuda else [1024]
    )
    parser.add_argument("--n", type=int, nargs="+", default=[4])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if cuda else "fp32")
    parser.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument(
        "--tune", action="store_true", help="find and keep the fastest tiles first (minutes a shape)"
    )
    parser.add_argument("--out", type=Path, default=Path("bench_out"))
    args = parser.parse_args()
    others = Others()
    device = "cuda" if cuda else "cpu"
    copy = copy_bandwidth(device)
    where = torch.cuda.get_device_name() if cuda else described()
    print(
        f"{where}, torch {torch.__version__}, {args.dtype}, copy {copy / 1e9:.0f} GB/s, {time.strftime('%Y-%m-%d')}"
    )
    if args.tune and cuda:
        from hcmegatron.kernels.tuning import tune

        for n in args.n:
            for C in args.hidden:
                print(f"tiles for n={n}, C={C}: {tune(n, C, DTYPES[args.dtype])}")
    rows: list[KernelTime] = []
    skipped: dict[str, str] = {}
    for n in args.n:
        for C in args.hidden:
            for T in args.tokens:
                for key in args.only:
                    try:
                        found = measure(key, n, C, T, DTYPES[args.dtype], device, copy)
                    except Unavailable as reason:
                        skipped[key] = str(reason)
                        continue
                    except Exception as error:  # a peer that breaks must not end the run; it is said below
                        if key in ("triton", "torch"):
                            raise
                        skipped[key] = f"failed at n={n} C={C} T={T}: {type(error).__name__}: {error}"
                        continue
                    rows += found
                    for row in found:
                        print(
                            f"{row.candidate:20} n={n} C={C:5} T={T:6} {row.operation:20} {row.microseconds:9.1f} us "
                            f"{row.gb_per_s:7.0f} GB/s {row.percent_of_copy:4.0f}% of copy, "
                            f"{row.kept_bytes_per_token:8.0f} B a token kept"
                        )
    for key, reason in skipped.items():
        print(f"skipped {key}: {reason}")
    if not rows:
        sys.exit("nothing could be measured")
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "kernels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    print(f"wrote {args.out / 'kernels.csv'}")
    print(others)
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed")
    else:
        draw(rows, args.out / "kernels.svg", where)
        print(f"wrote {args.out / 'kernels.svg'}")


def draw(rows: list[KernelTime], path: Path, title: str) -> None:
    """Time of the sub-layer, forward and backward, over its copy limit, at the largest shape."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    last = (rows[-1].n, rows[-1].C, rows[-1].tokens)
    at = [r for r in rows if (r.n, r.C, r.tokens) == last]
    names = list(dict.fromkeys(r.candidate for r in at))
    shown = [name for name in plan(last[0]) if any(r.operation == name for r in at)]
    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(names) * len(shown) + 1.5), layout="constrained")
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        times = {r.operation: r.microseconds for r in at if r.candidate == name}
        positions = [i + k * height for i, o in enumerate(shown) if o in times]
        axes.barh(positions, [times[o] for o in shown if o in times], height, label=name)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(shown))], shown)
    axes.invert_yaxis()
    axes.set_xlabel("microseconds")
    axes.set_title(f"mHC, n={last[0]}, C={last[1]}, {last[2]} tokens, {title}")
    axes.legend(frameon=False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
