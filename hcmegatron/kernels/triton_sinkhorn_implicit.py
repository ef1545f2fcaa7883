"""Triton: Sinkhorn's backward by the implicit function theorem, in registers.

The mathematics: hcmegatron/kernels/torch_sinkhorn_implicit.py. Matrices are [BT, NP, NP], zero outside the n x n ones;
axis 2 sums to 1.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row(M, k: tl.constexpr, NP: tl.constexpr):
    """M[:, k, :]: [BT,NP]."""
    return tl.sum(tl.where(tl.arange(0, NP)[None, :, None] == k, M, 0.0), axis=1)


@triton.jit
def _over(x, total):
    return tl.where(total > 0.0, x / tl.where(total > 0.0, total, 1.0), 0.0)


@triton.jit
def backward(M, dM, N: tl.constexpr):
    """Gradient of the logits [BT,NP,NP]."""
    BT: tl.constexpr = M.shape[0]
    NP: tl.constexpr = M.shape[1]
    lane = tl.arange(0, NP)[None, :]
    G = M * dM
    W = tl.zeros([BT, NP, NP], tl.float32)
    F = tl.zeros([BT, NP, NP], tl.float32)
    for o in tl.static_range(N):
        m, g = _row(M, o, NP), _row(G, o, NP)
        W += m[:, :, None] * m[:, None, :]
        F += g[:, :, None] * m[:, None, :] - m[:, :, None] * g[:, None, :]
    beta = tl.zeros([BT, NP], tl.float32)
    for k in tl.static_range(N - 1, 0, -1):
        w, f = tl.where(lane < k, _row(W, k, NP), 0.0), tl.where(lane < k, _row(F, k, NP), 0.0)
        share = _over(w, tl.sum(w, axis=1, keep_dims=True))
        W += share[:, :, None] * w[:, None, :]
        F += share[:, :, None] * f[:, None, :] - f[:, :, None] * share[:, None, :]
    for k in tl.static_range(1, N):
        w, f = tl.where(lane < k, _row(W, k, NP), 0.0), tl.where(lane < k, _row(F, k, NP), 0.0)
        potential = _over(tl.sum(f + w * beta, axis=1), tl.sum(w, axis=1))
        beta = tl.where(lane == k, potential[:, None], beta)
    E = dM - beta[:, None, :]
    return M * (E - tl.sum(M * E, axis=2, keep_dims=True))
