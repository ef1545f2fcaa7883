"""Sinkhorn's two backwards: their errors over the size of the logits, and what they take on a CPU.

    python -m tools.bench_sinkhorn [--tokens 4096] [--iterations 20] [--rounds 31]

Errors are those of the logits' gradient, 1000 matrices of 4 x 4 with normal logits and normal gradients, relative to
its mean norm, in fp32: the median and the largest, against autograd in fp64 through the same iterations and through
LIMIT of them, which stand for what they converge to. `columns` is how far column sums are from 1 after the iterations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hcmegatron.connections.sinkhorn import sinkhorn
from hcmegatron.kernels import torch_sinkhorn, torch_sinkhorn_implicit
from tools.machine import Others, described

SCALES = (0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
LIMIT = 400
N, MATRICES = 4, 1000


def drawn(scale: float, tokens: int) -> tuple[Tensor, Tensor]:
    """Logits and the gradients of their matrices [n, n, tokens], fp64."""
    g = torch.Generator().manual_seed(0)
    L, dM = (torch.randn(N, N, tokens, generator=g, dtype=torch.float64) for _ in range(2))
    return scale * L, dM


def followed(L: Tensor, dM: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """The matrices, and by autograd the logits' gradient."""
    leaf = L.permute(2, 0, 1).clone().requires_grad_()
    M = sinkhorn(leaf, iterations)
    (dL,) = torch.autograd.grad(M, leaf, dM.permute(2, 0, 1))
    return M.detach().permute(1, 2, 0), dL.permute(1, 2, 0)


def error(got: Tensor, exact: Tensor) -> str:
    """Median and largest over the matrices."""
    of_each = (got.double() - exact).norm(dim=(0, 1)) / exact.norm(dim=(0, 1)).mean()
    return f"{of_each.median():.1e} / {of_each.max():.1e}"


def milliseconds(run: Callable[[], Any], rounds: int) -> float:
    """Median CPU time of so many calls, after one: other programs take nothing of it."""
    run()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096, help="of the timing")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(described())
    others = Others()
    backs: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "iterations": lambda L, dM: torch_sinkhorn.backward(L, dM, args.iterations, "none"),
        "implicit": lambda L, dM: torch_sinkhorn_implicit.backward(
            torch_sinkhorn.forward(L, args.iterations, "none"), dM
        ),
    }
    heads = [f"{name}, of {what}" for name in backs for what in ("the iterations", "the limit")]
    print(f"| logits | columns | {' | '.join(heads)} |")
    print("|" + "---|" * (2 + 2 * len(backs)))
    for scale in SCALES:
        L, dM = drawn(scale, MATRICES)
        (M, through), (_, limit) = followed(L, dM, args.iterations), followed(L, dM, LIMIT)
        found = [back(L.float(), dM.float()) for back in backs.values()]
        cells = [error(dL, exact) for dL in found for exact in (through, limit)]
        print(f"| {scale} | {(M.sum(0) - 1).abs().max():.1e} | {' | '.join(cells)} |")
    L, dM = (t.float() for t in drawn(1.0, args.tokens))
    M = torch_sinkhorn.forward(L, args.iterations, "none")
    timed = {
        "forward": lambda: torch_sinkhorn.forward(L, args.iterations, "none"),
        "backward, iterations": lambda: torch_sinkhorn.backward(L, dM, args.iterations, "none"),
        "backward, implicit, the forward's matrix kept": lambda: torch_sinkhorn_implicit.backward(M, dM),
    }
    print(f"\n{args.tokens} tokens, n = {N}, one thread:")
    for name, run in timed.items():
        print(f"{name}: {milliseconds(run, args.rounds):.2f} ms")
    print(others)


if __name__ == "__main__":
    main()
