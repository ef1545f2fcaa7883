"""Sinkhorn's linear form, compiled: torch_sinkhorn's functions, with the same bits for up to EXACT streams.

The first softmax, and all of the logarithmic form, are torch's.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hcmegatron.kernels import torch_sinkhorn
from hcmegatron.kernels.native.library import EPS, LANES, address, compiled_by, function, obstacle

EXACT = 4  # beyond, torch adds numbers up in an order that depends on the number of tokens
_TRIED = (37, 3)  # tokens and iterations of the comparison


def forward(L: Tensor, iterations: int, eps: str) -> Tensor:
    """Logits [n, n, T] -> matrices [n, n, T]."""
    if not _compiled(L):
        return torch_sinkhorn.forward(L, iterations, eps)
    M = torch.softmax(L, 0)
    n, _, T = L.shape
    function("sinkhorn_forward", n)(address(M), T, 2 * iterations - 1, EPS[eps])
    return M


def backward(L: Tensor, dM: Tensor, iterations: int, eps: str) -> Tensor:
    """Gradient of the logits from that of the matrices, both [n, n, T]."""
    if not _compiled(L):
        return torch_sinkhorn.backward(L, dM, iterations, eps)
    P = torch.softmax(L, 0)
    G = dM.clone(memory_format=torch.contiguous_format)  # in place, of what belongs to others
    (n, _, T), steps = L.shape, 2 * iterations - 1
    scratch = L.new_empty(steps * n * LANES)
    function("sinkhorn_backward", n)(address(P), address(G), address(scratch), T, steps, EPS[eps])
    return G


def _compiled(L: Tensor) -> bool:
    return L.dtype == torch.float32 and torch_sinkhorn.linear_suffices(L)


@functools.cache
def differs(n: int) -> str | None:
    """Why the bits of n streams are not torch's, in words; None where they are.

    Compared once, in a small case: torch's own depend on the processor, on which it multiplies and adds in one rounding
    or in two.
    """
    if n > EXACT:
        return f"n={n}, its bits are torch's up to n={EXACT}"
    if found := obstacle(n, "sinkhorn"):
        return found
    T, iterations = _TRIED
    numbers = torch.Generator().manual_seed(n)
    L, dM = (torch.randn(n, n, T, generator=numbers, device="cpu", dtype=torch.float32) for _ in range(2))
    for eps in EPS:
        same = torch.equal(
            forward(L, iterations, eps), torch_sinkhorn.forward(L, iterations, eps)
        ) and torch.equal(backward(L, dM, iterations, eps), torch_sinkhorn.backward(L, dM, iterations, eps))
        if not same:
            return f"{compiled_by(n, 'sinkhorn')}'s bits differ from torch's on this processor"
    return None
