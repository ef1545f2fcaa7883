"""Kernel launches of one sub-layer's connection, forward and backward: what a host has to issue for each.

    python -m tools.count_launches [--kinds residual mhc ...] [--kernels torch triton] [--n 4] [--bias] [--dropout 0.1]
                                   [--operations] [--json]

A launch is an operation that reaches the device: a dispatched operation that is neither a view nor an allocation, or
a Triton kernel. Counted where nothing runs, on torch's meta device, which has no values to look at: so the way is the
one taken on a GPU, and an operation that waits for the device would be an error here. Chains of four and of five
sub-layers are counted and the difference is one sub-layer in the middle of a chain, its write folded with the next
read where kernels fold, and the sums of gradients included that autograd makes between sub-layers. Parameters have a
gradient already, as in every micro-batch but the first: adding to it is a launch each (`accumulated`).
T, the sub-layer itself, is one multiplication: its one launch, and one in backward, are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hcmegatron.config.schema import Connection
from hcmegatron.connections.accounting import KINDS, streams
from hcmegatron.connections.build import build_connection
from hcmegatron.kernels.select import Kernels, torch_kernels, triton_kernels

ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
HEADS = ("kind", "kernels", "way", "launches", "torch", "triton", "accumulated", "allocations")
# Views by what they do, though not by their declaration.
VIEWS = ("_unsafe_view", "_reshape_alias", "detach", "alias", "lift_fresh")


@dataclass
class Count:
    """Operations by name."""

    torch: Counter[str] = field(default_factory=Counter)
    triton: Counter[str] = field(default_factory=Counter)
    accumulated: int = 0  # parameters' gradients added to those that are there
    allocations: int = 0  # no launches: the host's caching allocator answers them

    def __sub__(self, other: Count) -> Count:
        return Count(
            self.torch - other.torch,
            self.triton - other.triton,
            self.accumulated - other.accumulated,
            self.allocations - other.allocations,
        )

    @property
    def launches(self) -> int:
        """All of them."""
        return self.torch.total() + self.triton.total() + self.accumulated


class Counting(TorchDispatchMode):
    """Within it, what is dispatched is counted. gradients: the parameters' own, into which others are added."""

    def __init__(self, gradients: list[Tensor]) -> None:
        super().__init__()
        self.count = Count()
        self.gradients = gradients

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ALLOCATIONS:
            self.count.allocations += 1
        elif name == "add_" and any(args[0] is g for g in self.gradients):
            self.count.accumulated += 1
        elif not func.is_view and name not in VIEWS:
            self.count.torch[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def triton_launches(count: Count) -> Iterator[None]:
    """Within it, Triton kernels are counted and not launched."""
    from hcmegatron.kernels import compile_offline

    with compile_offline.record() as launches:
        yield
    count.triton.update(launch.kernel.fn.__name__ for launch in launches)


def kernels_named(name: str) -> Kernels:
    """As select would choose on a GPU."""
    return torch_kernels("counted") if name == "torch" else triton_kernels("counted")


def chain(
    conn: Connection, kernels: str, sublayers: int, *, with_bias: bool, dropout: float
) -> tuple[Count, Count]:
    """Forward and backward of `sublayers` sub-layers on bf16 streams with fp32 parameters."""
    C, tokens = 64, 8
    connections = nn.ModuleList(
        build_connection(conn, C, k, norm_eps=1e-6, device="meta", kernels="torch") for k in range(sublayers)
    )
    for connection in connections:
        if hasattr(connection, "kernels"):
            connection.kernels = kernels_named(kernels)
    for parameter in connections.parameters():
        parameter.grad = torch.empty_like(parameter)
    like = {"dtype": torch.bfloat16, "device": "meta"}
    H = torch.empty(tokens, 1, streams(conn), C, **like).requires_grad_()
    bias = torch.empty(C, **like).requires_grad_() if with_bias else None
    if bias is not None:
        bias.grad = torch.empty_like(bias)

    def forward() -> Tensor:
        out, projection = H, None
        for connection, following in pairwise([*connections, None]):
            x, coefficients = connection.read(out, projection)
            written = (out, x * 2, coefficients, bias, dropout)
            if following is None:
                out = connection.write(*written)
            else:
                out, projection = connection.write_and_project(following, *written)
        return out

    gradients = [p.grad for p in (*connections.parameters(), bias) if p is not None]
    out, there = counted(forward, gradients)
    _, back = counted(partial(out.backward, torch.empty_like(out)), gradients)
    return there, back


def counted(run: Callable[[], Any], gradients: list[Tensor]) -> tuple[Any, Count]:
    """What `run` returns, and its launches."""
    with Counting(gradients) as counting, triton_launches(counting.count):
        result = run()
    return result, counting.count


def per_sublayer(
    kind: str, kernels: str, *, n: int = 4, with_bias: bool = False, dropout: float = 0.0
) -> tuple[Count, Count]:
    """Forward and backward of one sub-layer's connection; T's own multiplication not counted."""
    conn = Connection(kind=kind, n=n)
    chain(conn, kernels, 1, with_bias=with_bias, dropout=dropout)  # makes the tables that are made once
    longer, shorter = (chain(conn, kernels, L, with_bias=with_bias, dropout=dropout) for L in (5, 4))
    ways = tuple(a - b for a, b in zip(longer, shorter, strict=True))
    for way in ways:
        way.torch -= Counter({"mul": 1})
    return ways[0], ways[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--kernels", choices=("torch", "triton"), nargs="+", default=("torch", "triton"))
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--bias", action="store_true", help="T hands back a bias to be added")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--operations", action="store_true", help="name the operations")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [
        {"kind": kind, "kernels": kernels, "way": way, "launches": count.launches, **vars(count)}
        for kind in args.kinds
        for kernels in args.kernels
        for way, count in zip(
            ("forward", "backward"),
            per_sublayer(kind, kernels, n=args.n, with_bias=args.bias, dropout=args.dropout),
            strict=True,
        )
    ]
    if args.json:
        print(json.dumps(rows))
        return
    print(" ".join(f"{head:>11}" for head in HEADS))
    for r in rows:
        totals = {way: sum(r[way].values()) for way in ("torch", "triton")}
        print(" ".join(f"{cell!s:>11}" for cell in ({**r, **totals}[head] for head in HEADS)))
        if args.operations:
            named = sorted((*r["triton"].items(), *r["torch"].items()), key=lambda item: -item[1])
            print(" " * 12 + ", ".join(f"{name} {number}" for name, number in named))


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels are not launched
    main()
