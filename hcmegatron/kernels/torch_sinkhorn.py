"""Sinkhorn-Knopp forward and backward by hand, for torch: tokens last, so that every step is one long vector.

L, M are [n, n, T]; dimension 0 is summed first (columns of the paper's matrix), dimension 1 last (rows). Two
forms of the same map: linear, a fifth of the time, where no entry of any iterate can leave fp32's range; and
logarithmic, exact and finite for all logits. The map and its epsilons are described in
hcmegatron/connections/sinkhorn.py.

Backward keeps the sums of every step ([n, T] each, while it runs), not the matrices: those it rebuilds from
the last to the first by multiplying the sums back. `gl` is the gradient of a matrix's logarithm, in which
every normalisation M' = M / s pulls back as gl - M' sum(gl).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

EPS = 1e-6
LOG_EPS = math.log(EPS)
# Iterates of logits spanning S stay above exp(-2 S) / n^2; fp32 reaches down to 1e-38.
LINEAR_SPAN = 30.0


def linear_suffices(L: Tensor) -> bool:
    """Whether the linear form is safe for these logits. Off the CPU the answer would wait for the device:
    no."""
    if L.device.type != "cpu" or L.numel() == 0:
        return False
    low, high = torch.aminmax(L)
    return bool(high - low < LINEAR_SPAN)  # False for NaN


def forward(L: Tensor, iterations: int, eps: str) -> Tensor:
    """Logits [n, n, T] -> matrices [n, n, T]."""
    if linear_suffices(L):
        return _linear(L, iterations, eps)[0]
    M = _log(L, iterations, eps)[0].exp_()
    # Logarithms of large logits are rounded more coarsely than rows should sum to 1.
    return M.div_(M.sum(1, keepdim=True)) if eps == "none" else M


def backward(L: Tensor, dM: Tensor, iterations: int, eps: str) -> Tensor:
    """Gradient of the logits from that of the matrices, both [n, n, T]."""
    linear = linear_suffices(L)
    M, sums, P = (_linear if linear else _log)(L, iterations, eps)
    gl = dM * (M if linear else M.exp())
    for step in range(len(sums) - 1, -1, -1):
        s = sums[step]
        pulled = gl.sum(_dim(step), keepdim=True)
        if eps == "clamp":  # a clamped sum is a constant
            pulled *= s > (EPS if linear else LOG_EPS)
        gl.addcmul_(M if linear else M.exp(), pulled, value=-1)
        M = M.mul_(s) if linear else M.add_(s)
    if eps == "additive":
        gl *= P / M if linear else P / M.exp()
    return gl.addcmul_(P, gl.sum(0, keepdim=True), value=-1)


def _dim(step: int) -> int:
    """Steps after the first normalisation alternate rows, columns, ..., rows."""
    return 1 - step % 2


def _linear(L: Tensor, iterations: int, eps: str) -> tuple[Tensor, list[Tensor], Tensor]:
    """The matrix, the sums divided by at each step after the first, and the first column softmax P."""
    P = torch.softmax(L, 0)
    M = P + EPS if eps == "additive" else P.clone()
    sums = []
    for step in range(2 * iterations - 1):
        s = M.sum(_dim(step), keepdim=True)
        if eps == "additive":
            s += EPS
        elif eps == "clamp":
            s.clamp_(min=EPS)
        M.div_(s)
        sums.append(s)
    return M, sums, P


def _log(L: Tensor, iterations: int, eps: str) -> tuple[Tensor, list[Tensor], Tensor]:
    """The same with the matrix and the sums as logarithms (P stays linear)."""
    log_eps = L.new_tensor(LOG_EPS)
    logP = torch.log_softmax(L, 0)
    M = torch.logaddexp(logP, log_eps) if eps == "additive" else logP.clone()
    sums = []
    for step in range(2 * iterations - 1):
        s = torch.logsumexp(M, _dim(step), keepdim=True)
        if eps == "additive":
            s = torch.logaddexp(s, log_eps)
        elif eps == "clamp":
            s.clamp_(min=LOG_EPS)
        M.sub_(s)
        sums.append(s)
    return M, sums, logP.exp()
