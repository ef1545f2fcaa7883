"""Compile every Triton kernel for a set of shapes without a GPU and print what it needs and what it moves.

python -m tools.compile_kernels [--sm 80 90 100] [--n 4] [--hidden 2560 4096 7168] [--dtype bf16] [--tokens 8192]
                                [--variant mhc ihc gr fc dropout mhc_lite krom implicit] [--streams]
                                [--measured bench_out/kernels.csv]

Columns: `stack` bytes a thread in local memory, which are spills; `per sm` programs that a multiprocessor holds at a
time; `waves` how often the device (A100, H100, B200: 108, 132, 148 multiprocessors) is filled for all programs, the
last time in part; `ideal MB` the fewest bytes of the streams, x and y (tools.kernel_traffic), `moved MB` those that the
launch moves and `L2 MB` what its programs read again. The share of copy speed is a measurement: printed from a table of
tools.bench_kernels, never from an estimate.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hcmegatron.kernels import compile_offline, gated_function, triton_path
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.tiles import SIZES, planned_for
from tools.kernel_traffic import traffic

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
GOALS = {"read": 85, "write": 85, "read backward": 75, "write backward": 75}  # per cent of copy speed
COLUMNS = {  # heading, key and width
    "kernel": ("name", 27),
    "variant": ("variant", 12),
    "sm": ("sm", 3),
    "n": ("n", 1),
    "C": ("C", 4),
    "tile": ("tile", 18),
    "registers": ("registers", 9),
    "stack": ("stack", 5),
    "shared": ("shared", 6),
    "per sm": ("per_sm", 6),
    "programs": ("programs", 8),
    "waves": ("waves", 5),
    "ideal MB": ("ideal", 8),
    "moved MB": ("moved", 8),
    "L2 MB": ("l2", 6),
    "loads": ("loads", 5),
    "16-byte": ("wide_loads", 7),
    "of streams": ("stream_loads", 10),
    "matrix": ("tensor_core", 6),
}


def sub_layer(n: int, C: int, dtype: torch.dtype, T: int, **options: Any) -> list[compile_offline.Launch]:
    """The launches of one mHC sub-layer: forward, the fold and the read after it, and backward."""
    o = ReadOptions(n, **options)
    sizes = [size for size in o.sizes if size]
    H, phi = _leaf(T, n, C, dtype=dtype), _leaf(n * C, o.columns)
    scale, bias = [_leaf(1) for _ in sizes], [_leaf(size) for size in sizes]

    def run() -> None:
        x, _, post, res, streams = triton_path.read(H, phi, scale, bias, o)
        carry = res if o.use_res else None
        triton_path.write(streams, x.unsqueeze(1), post, carry).backward(H.detach())
        out, projection = triton_path.write_and_project(H, x.unsqueeze(1), post, carry, phi)
        triton_path.read(out.detach(), phi, scale, bias, o, projection)

    return compile_offline.launches_of(run)


def residual_map(n: int, C: int, dtype: torch.dtype, T: int, **options: Any) -> list[compile_offline.Launch]:
    """Of a sub-layer's launches, those that make res of its logits: in no others it is another code than mHC's."""
    return [launch for launch in sub_layer(n, C, dtype, T, **options) if "RES_MAP" in launch.arguments]


def identity(n: int, C: int, dtype: torch.dtype, T: int) -> list[compile_offline.Launch]:
    """The launches of one ihc sub-layer, as those of mHC's."""
    return sub_layer(n, C, dtype, T, use_res=False)


def gated(n: int, C: int, dtype: torch.dtype, T: int) -> list[compile_offline.Launch]:
    """The launches of a gated residual's read of rank C/8, of its write and of both backwards."""
    R, r = _leaf(T, n, C, dtype=dtype), C // 8
    weights = [_leaf(*shape) for shape in ((n, C), (n * C, r), (r, n * C), (n * C, n))]

    def run() -> None:
        x, s, _, streams = gated_function.read(R, *weights, 1e-6)
        triton_path.write(streams, x.unsqueeze(1), s, None).backward(R.detach())

    return compile_offline.launches_of(run)


def dropped_out(n: int, C: int, dtype: torch.dtype, T: int) -> list[compile_offline.Launch]:
    """The launches of a write with bias and dropout and of its backward, and of the fold with them."""
    held = _write_inputs(n, 1, C, dtype, T)
    phi = _leaf(n * C, ReadOptions(n).columns)

    def run() -> None:
        triton_path.write(*held, dropout=0.1).backward(held[0].detach())
        triton_path.write_and_project(*held[:4], phi, held[4], dropout=0.1)

    return compile_offline.launches_of(run)


def frac(n: int, C: int, dtype: torch.dtype, T: int) -> list[compile_offline.Launch]:
    """The launches of FC's write, n fractions of C / n channels, with bias, and of its backward."""
    held = _write_inputs(n, n, C // n, dtype, T)
    return compile_offline.launches_of(lambda: triton_path.write(*held).backward(held[0].detach()))


def _write_inputs(n: int, rows: int, C: int, dtype: torch.dtype, T: int) -> list[torch.Tensor]:
    H, y, bias = (_leaf(*s, dtype=dtype) for s in ((T, n, C), (T, rows, C), (rows, C)))
    return [H, y, _leaf(T, n), _leaf(T, n, n), bias]


def _leaf(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """On torch's meta device, where nothing is held and programs are planned for an H100."""
    return torch.empty(*shape, dtype=dtype, device="meta").requires_grad_()


LAUNCHES: dict[str, Callable[..., list[compile_offline.Launch]]] = {
    "mhc": sub_layer,
    "ihc": identity,
    "gr": gated,
    "fc": frac,
    "dropout": dropped_out,
    "mhc_lite": partial(residual_map, res_map="permutations"),
    "krom": partial(residual_map, res_map="kronecker"),
    "implicit": partial(residual_map, sinkhorn_backward="implicit"),
}
OF_EVERY_KIND = ("mhc", "ihc", "gr", "fc", "dropout")


def launches(
    variant: str, sm: int, n: int, C: int, dtype: torch.dtype, T: int
) -> list[compile_offline.Launch]:
    """As they would be on a device of sm_`sm`."""
    with planned_for(sm):
        return LAUNCHES[variant](n, C, dtype, T)


def row(
    launch: compile_offline.Launch, sm: int, n: int, C: int, dtype: torch.dtype, streams: bool
) -> dict[str, Any]:
    """One line of the table. `vectors`: 16-byte loads a thread makes for its part of one tile of one stream."""
    given = launch.arguments
    warps = launch.options["num_warps"]
    has = {
        "fc": "Y" in given and given["R"] > 1,
        "bias": given.get("HAS_BIAS"),
        "dropout": given.get("DROPOUT"),
    }
    report, bytes_of = compile_offline.inspect_kernel(launch, sm), traffic(launch)
    per_sm = compile_offline.programs_per_sm(report, warps, sm)
    tile = [f"{given['BT']}x{given['BC']}", f"w{warps}", f"s{launch.options['num_stages']}"]
    return {
        "sm": sm,
        "n": n,
        "C": C,
        "tile": " ".join([*tile, *(f"{key}{given[key]}" for key in ("V", "G") if given.get(key, 1) > 1)]),
        "variant": " ".join(word for word, there in has.items() if there),
        "vectors": given["BT"] * given["BC"] * dtype.itemsize // (16 * 32 * warps),
        "per_sm": per_sm,
        "programs": launch.programs,
        "waves": round(launch.programs / (per_sm * SIZES[sm].processors), 2) if per_sm else "none fits",
        "ideal": round(bytes_of.ideal / 1e6, 1),
        "moved": round(bytes_of.moved / 1e6, 1),
        "l2": round(bytes_of.l2 / 1e6),
        "stream_loads": compile_offline.stream_loads(launch, sm) if streams else "",
        **asdict(report),
    }


def copy_shares(file: Path | None, n: int, C: int, tokens: int) -> dict[str, str]:
    """Per cent of copy speed of each operation as tools.bench_kernels measured it, or that nobody did."""
    shares = dict.fromkeys(GOALS, "not measured")
    if file is not None:
        with file.open() as lines:
            for r in csv.DictReader(lines):
                shape = (int(r["n"]), int(r["C"]), int(r["tokens"]))
                if (
                    r["candidate"] == "hcmegatron triton"
                    and shape == (n, C, tokens)
                    and r["operation"] in GOALS
                ):
                    shares[r["operation"]] = f"{float(r['percent_of_copy']):.0f}%"
    return shares


def main() -> None:
    """Print the table, or its rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sm", type=int, nargs="+", default=[90], choices=tuple(compile_offline.SHARED))
    parser.add_argument("--n", type=int, nargs="+", default=[4])
    parser.add_argument("--hidden", type=int, nargs="+", default=[2560])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--variant", choices=LAUNCHES, nargs="+", default=OF_EVERY_KIND)
    parser.add_argument(
        "--streams", action="store_true", help="count 16-byte loads of the streams alone too: compiles twice"
    )
    parser.add_argument("--measured", type=Path, help="kernels.csv of tools.bench_kernels")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    dtype = DTYPES[args.dtype]
    rows = [
        row(launch, sm, n, C, dtype, args.streams)
        for sm in args.sm
        for n in args.n
        for C in args.hidden
        for variant in args.variant
        for launch in launches(variant, sm, n, C, dtype, args.tokens)
    ]
    if args.json:
        print(json.dumps(rows))
        return
    print(" ".join(f"{head:>{width}}" for head, (_, width) in COLUMNS.items()))
    for r in rows:
        print(" ".join(f"{r[key]!s:>{width}}" for key, width in COLUMNS.values()))
    print(f"\nshare of copy speed, {args.tokens} tokens:")
    for n in args.n:
        for C in args.hidden:
            shares = copy_shares(args.measured, n, C, args.tokens)
            said = ", ".join(f"{what} {share} (goal {GOALS[what]}%)" for what, share in shares.items())
            print(f"n={n} C={C}: {said}")


if __name__ == "__main__":
    main()
