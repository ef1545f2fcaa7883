"""Sinkhorn-Knopp onto the doubly stochastic matrices, in log space (mHC, 2512.24880, Eq. 9).

M = exp(L); then, `iterations` times, columns to sum 1 and rows to sum 1. Subtracting log-sums is the same
map, exact and finite for any finite logits, and needs no shift: shifting rows would change a finite
iteration. Variants of the epsilon, both 1e-6: `additive` (DeepSeek-V4: added to the entries after the first
normalisation and to every later sum) and `clamp` (Megatron-Core main: a floor under every sum).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hcmegatron.kernels.options import SinkhornEps

LOG_EPS = math.log(1e-6)
COLUMNS, ROWS = -2, -1  # the dimension that is summed over


def _log_sum(L: Tensor, dim: int, eps: SinkhornEps) -> Tensor:
    """Logarithm of the sums that L's entries are divided by."""
    if eps == "clamp":
        # The sum of a row of -infinity is zero, and its logarithm has no gradient; the floor in its place has.
        L = L.clamp(min=torch.finfo(L.dtype).min)
    s = torch.logsumexp(L, dim, keepdim=True)
    if eps == "additive":
        return torch.logaddexp(s, torch.full_like(s, LOG_EPS))
    if eps == "clamp":
        return s.clamp(min=LOG_EPS)
    return s


def _first(L: Tensor, eps: SinkhornEps) -> Tensor:
    """The first column normalisation. Relative to the column's maximum the sum is at least 1: no clamp
    acts."""
    P = torch.log_softmax(L, COLUMNS)
    return torch.logaddexp(P, torch.full_like(P, LOG_EPS)) if eps == "additive" else P


def _last(L: Tensor, eps: SinkhornEps) -> Tensor:
    """The last row normalisation, out of log space. A softmax sums to 1 to rounding whatever the size of
    L."""
    return torch.softmax(L, ROWS) if eps == "none" else torch.exp(L - _log_sum(L, ROWS, eps))


def sinkhorn(L: Tensor, iterations: int = 20, eps: SinkhornEps = "none") -> Tensor:
    """Doubly stochastic matrix of logits L [..., n, n], columns first and rows last, for autograd to follow.

    Row sums are 1 to rounding; columns (dim -2 summed) deviate as far as `iterations` leave them. A row or
    column without a finite logit has no normalised form and gives NaN, which spreads over its matrix, except
    where an epsilon takes the place of a sum of zero. hcmegatron.kernels.torch_sinkhorn has the same with backward
    by hand, which recomputes the iterates.

    Raises:
        ValueError: fewer than one iteration, or matrices that are not square.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: must be at least 1")
    if L.ndim < 2 or L.shape[-1] != L.shape[-2]:
        raise ValueError(f"L is {list(L.shape)}: must be [..., n, n], square matrices of logits")
    L = _first(L, eps)
    for _ in range(iterations - 1):
        L = L - _log_sum(L, ROWS, eps)
        L = L - _log_sum(L, COLUMNS, eps)
    return _last(L, eps)
