"""Compile every Triton kernel for a set of shapes without a GPU and print what it needs.

python -m tools.compile_kernels [--sm 80 90 100] [--n 4] [--hidden 2560 4096 7168] [--dtype bf16]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import torch

from hcmegatron.kernels import offline, triton_path
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.tiles import tile

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def sub_layer(n: int, C: int, dtype: torch.dtype, T: int = 4096, **options: object) -> list[offline.Launch]:
    """The launches of one mHC sub-layer, forward, fold and backward."""
    o = ReadOptions(n, **options)
    K = o.columns
    H = torch.empty(T, n, C, dtype=dtype).requires_grad_()
    phi = torch.empty(n * C, K).requires_grad_()
    scale, bias = torch.empty(K).requires_grad_(), torch.empty(K).requires_grad_()

    def run() -> None:
        x, _, post, res, streams = triton_path.read(H, phi, scale, bias, o)
        triton_path.write(streams, x.unsqueeze(1), post, res).backward(H.detach())
        triton_path.write_and_project(H, x.unsqueeze(1), post, res, phi)

    return offline.launches_of(run)


def main() -> None:
    """Print the table, or its rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sm", type=int, nargs="+", default=[90])
    parser.add_argument("--n", type=int, nargs="+", default=[4])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2560])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dtype = DTYPES[args.dtype]
    rows = [
        {"sm": sm, "n": n, "C": C, "tile": _words(launch, n, C, dtype), **asdict(offline.report(launch, sm))}
        for sm in args.sm
        for n in args.n
        for C in args.hidden
        for launch in sub_layer(n, C, dtype)
    ]
    if args.json:
        print(json.dumps(rows))
        return
    heads = ("kernel", "sm", "n", "C", "tile", "registers", "stack", "shared", "loads", "16-byte", "matrix")
    keys = (
        "name",
        "sm",
        "n",
        "C",
        "tile",
        "registers",
        "stack",
        "shared",
        "loads",
        "wide_loads",
        "tensor_core",
    )
    widths = (28, 4, 2, 5, 20, 10, 6, 7, 6, 8, 7)
    for row in [heads, *([r[k] for k in keys] for r in rows)]:
        print(" ".join(f"{value!s:>{width}}" for value, width in zip(row, widths, strict=True)))


def _words(launch: offline.Launch, n: int, C: int, dtype: torch.dtype) -> str:
    t = tile(launch.kernel.fn.__name__, n, C, dtype.itemsize)
    return f"{t.BT}x{t.BC} w{t.warps} s{t.stages} V{t.V} G{t.G}"


if __name__ == "__main__":
    main()
