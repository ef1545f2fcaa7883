"""What the compiled parts of reads and writes take on a CPU, beside torch's: microseconds of one thread.

    python -m tools.bench_native
    python -m tools.bench_native --hidden 512 --tokens 2048

The shortest of many calls. Sinkhorn alone is what kernels=auto compiles; where it has nothing of its own it is torch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from hcmegatron.kernels.native.primitives import NativePrimitives, SinkhornCompiled
from hcmegatron.kernels.options import ReadOptions
from hcmegatron.kernels.select import select_kernels
from hcmegatron.kernels.torch_primitives import Primitives
from tools.machine import Others, described

HEAP = 1 << 24  # bytes
CANDIDATES: dict[str, Primitives] = {
    "torch": Primitives(),
    "auto": SinkhornCompiled(),
    "native": NativePrimitives(),
}


def operations(
    primitives: Primitives, n: int, T: int, C: int, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Calls by what they compute, of the same random numbers for all candidates."""
    torch.manual_seed(0)
    options = ReadOptions(n)
    K = options.columns
    t, scale, bias, phi, dp = (torch.randn(*shape) for shape in ((K, T), (K,), (K,), (n * C, K), (K, T)))
    H, y, d, dx = (torch.randn(*shape).to(dtype) for shape in ((T, n, C), (T, 1, C), (T, n, C), (T, C)))
    Hc, c = H.float(), torch.randn(T)
    Hv = Hc.view(T, n * C)
    pre, post, res = primitives.coefficients(t, scale, bias, options)
    given = t, scale, bias, pre, post, res, None, options
    every = (True,) * 4
    return {
        "coefficients": lambda: primitives.coefficients(t, scale, bias, options),
        "coefficients, backward": lambda: primitives.coefficients_backward(*given),
        "x": lambda: primitives.aggregate(H, Hc, pre),
        "x, backward": lambda: primitives.aggregate_backward(H, Hc, dx),
        "streams' gradient": lambda: primitives.streams_backward(H, Hv, d, dp, phi, c, pre, dx),
        "write": lambda: primitives.write(H, y, post, res),
        "write, backward": lambda: primitives.write_backward(H, y, post, res, d, every),
        "write past an identity": lambda: primitives.write(H, y, post, None),
        "write past an identity, backward": lambda: primitives.write_backward(None, y, post, None, d, every),
    }


def shortest(call: Callable[[], object], calls: int = 200) -> float:
    """Microseconds."""
    best = float("inf")
    for _ in range(calls):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return 1e6 * best


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=128)
    args = parser.parse_args()
    others = Others()
    torch.set_num_threads(1)
    # As in a run: what malloc has once got back of this size it keeps, where it would ask the system for every tensor.
    torch.empty(HEAP, dtype=torch.uint8)
    try:
        chosen = select_kernels("native", n=args.streams, device="cpu")
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print(f"{described()}\n{chosen.reason}\n")
    columns = [(dtype, name) for dtype in (torch.float32, torch.bfloat16) for name in CANDIDATES]
    found = {
        column: {
            what: shortest(call)
            for what, call in operations(
                CANDIDATES[column[1]], args.streams, args.tokens, args.hidden, column[0]
            ).items()
        }
        for column in columns
    }
    names = [f"{name}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}" for dtype, name in columns]
    print(f"{'':>34}" + "".join(f"{name:>14}" for name in names))
    for what in found[columns[0]]:
        print(f"{what:>34}" + "".join(f"{found[column][what]:>14.0f}" for column in columns))
    print(others)


if __name__ == "__main__":
    main()
