"""Compile every Triton kernel for a set of shapes without a GPU and print what it needs.

python -m tools.compile_kernels [--sm 80 90 100] [--n 4] [--hidden 2560 4096 7168] [--dtype bf16]
                                [--variant mhc fc dropout] [--streams]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

import torch

from hcmegatron.kernels import offline, triton_path
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.tiles import tile

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COLUMNS = {  # heading, key and width
    "kernel": ("name", 28),
    "variant": ("variant", 16),
    "sm": ("sm", 4),
    "n": ("n", 2),
    "C": ("C", 5),
    "tile": ("tile", 20),
    "registers": ("registers", 10),
    "stack": ("stack", 6),
    "shared": ("shared", 7),
    "loads": ("loads", 6),
    "16-byte": ("wide_loads", 8),
    "of streams": ("stream_loads", 11),
    "matrix": ("tensor_core", 7),
}


def sub_layer(n: int, C: int, dtype: torch.dtype, T: int = 4096, **options: Any) -> list[offline.Launch]:
    """The launches of one mHC sub-layer: forward, the fold and the read after it, and backward."""
    o = ReadOptions(n, **options)
    K = o.columns
    H = torch.empty(T, n, C, dtype=dtype).requires_grad_()
    phi = torch.empty(n * C, K).requires_grad_()
    scale, bias = torch.empty(K).requires_grad_(), torch.empty(K).requires_grad_()

    def run() -> None:
        x, _, post, res, streams = triton_path.read(H, phi, scale, bias, o)
        triton_path.write(streams, x.unsqueeze(1), post, res).backward(H.detach())
        out, projection = triton_path.write_and_project(H, x.unsqueeze(1), post, res, phi)
        triton_path.read(out.detach(), phi, scale, bias, o, projection)

    return offline.launches_of(run)


def dropped_out(n: int, C: int, dtype: torch.dtype, T: int = 4096) -> list[offline.Launch]:
    """The launches of a write with bias and dropout and of its backward, and of the fold with them."""
    held = _write_inputs(n, 1, C, dtype, T)
    phi = torch.empty(n * C, ReadOptions(n).columns)

    def run() -> None:
        triton_path.write(*held, dropout=0.1).backward(held[0].detach())
        triton_path.write_and_project(*held[:4], phi, held[4], dropout=0.1)

    return offline.launches_of(run)


def frac(n: int, C: int, dtype: torch.dtype, T: int = 4096) -> list[offline.Launch]:
    """The launches of FC's write, n fractions of C / n channels, with bias, and of its backward."""
    held = _write_inputs(n, n, C // n, dtype, T)
    return offline.launches_of(lambda: triton_path.write(*held).backward(held[0].detach()))


def _write_inputs(n: int, rows: int, C: int, dtype: torch.dtype, T: int) -> list[torch.Tensor]:
    H, y, bias = (torch.empty(s, dtype=dtype) for s in ((T, n, C), (T, rows, C), (rows, C)))
    return [t.requires_grad_() for t in (H, y, torch.empty(T, n), torch.empty(T, n, n), bias)]


LAUNCHES = {"mhc": sub_layer, "fc": frac, "dropout": dropped_out}


def row(launch: offline.Launch, sm: int, n: int, C: int, dtype: torch.dtype, streams: bool) -> dict[str, Any]:
    """One line of the table. `vectors`: 16-byte loads a thread makes for its part of one tile of one stream."""
    given = launch.arguments
    threads = 32 * launch.options["num_warps"]
    has = {"fc": given.get("R", 1) > 1, "bias": given.get("HAS_BIAS"), "dropout": given.get("DROPOUT")}
    has["folded"] = given.get("FOLDED")
    return {
        "sm": sm,
        "n": n,
        "C": C,
        "tile": _words(launch, n, given["C"], dtype),
        "variant": " ".join(word for word, there in has.items() if there),
        "vectors": given["BT"] * given["BC"] * dtype.itemsize // (16 * threads),
        "stream_loads": offline.stream_loads(launch, sm) if streams else "",
        **asdict(offline.report(launch, sm)),
    }


def main() -> None:
    """Print the table, or its rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sm", type=int, nargs="+", default=[90])
    parser.add_argument("--n", type=int, nargs="+", default=[4])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2560])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--variant", choices=LAUNCHES, nargs="+", default=list(LAUNCHES))
    parser.add_argument(
        "--streams", action="store_true", help="count 16-byte loads of the streams alone too: compiles twice"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dtype = DTYPES[args.dtype]
    rows = [
        row(launch, sm, n, C, dtype, args.streams)
        for sm in args.sm
        for n in args.n
        for C in args.hidden
        for variant in args.variant
        for launch in LAUNCHES[variant](n, C, dtype)
    ]
    if args.json:
        print(json.dumps(rows))
        return
    print(" ".join(f"{head:>{width}}" for head, (_, width) in COLUMNS.items()))
    for r in rows:
        print(" ".join(f"{r[key]!s:>{width}}" for key, width in COLUMNS.values()))


def _words(launch: offline.Launch, n: int, C: int, dtype: torch.dtype) -> str:
    t = tile(launch.kernel.fn.__name__, n, C, dtype.itemsize)
    return f"{t.BT}x{t.BC} w{t.warps} s{t.stages} V{t.V} G{t.G}"


if __name__ == "__main__":
    main()
