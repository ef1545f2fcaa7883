"""Sinkhorn's backward by the implicit function theorem, for torch; tokens last.

What Sinkhorn converges to is M = diag(e^a) e^L diag(e^b), with a and b such that rows and columns have the sums that
they have. The gradient D of L is that of log M, M * dM, less M * (alpha_o + beta_i), with alpha and beta such that rows
and columns of D sum to 0. Rows of M sum to 1, so

    D = M * (E - (M * E) 1),    E = dM - beta,    Laplacian(W) beta = F 1,

with the weights W = M^T M of a graph of n nodes, and F = (M * dM)^T M less its transpose, which is antisymmetric: what
flows from node to node.

Nodes are eliminated one by one without a subtraction (Grassmann, Taksar and Heyman 1985), flows beside the weights, so
that no flow outgrows its weight and beta stays as large as dM, also where M is close to a permutation and all weights
are tiny.

Exact where the iterations have converged. After a finite number it is the gradient of the limit, taken at the matrix
that they reached; how far that is from the gradient of the iterations is in docs/mhc.md.
"""

from __future__ import annotations

import torch
from torch import Tensor


def backward(M: Tensor, dM: Tensor) -> Tensor:
    """Gradient of the logits [n, n, T] from the matrices [n, n, T], rows (dimension 1) summing to 1, and theirs."""
    W = (M.unsqueeze(2) * M.unsqueeze(1)).sum(0)
    half = ((M * dM).unsqueeze(2) * M.unsqueeze(1)).sum(0)
    E = dM - potentials(W, half - half.transpose(0, 1))
    return (E - (M * E).sum(1, keepdim=True)).mul_(M)


def potentials(W: Tensor, F: Tensor) -> Tensor:
    """beta [n, T] with beta_0 = 0 and sum_j W_kj (beta_k - beta_j) = sum_j F_kj for every node k.

    W [n, n, T] is symmetric, its diagonal unread; F [n, n, T] is antisymmetric. Both are overwritten. A node without a
    connection has potential 0.
    """
    n = len(W)
    out = [W[0, 0]] * n  # of a node, the weights to those that are left
    for k in range(n - 1, 0, -1):
        w, f = W[k, :k], F[k, :k]
        out[k] = w.sum(0)
        share = _over(w, out[k])
        W[:k, :k].addcmul_(share.unsqueeze(1), w.unsqueeze(0))
        through = share.unsqueeze(1) * f.unsqueeze(0)
        F[:k, :k].add_(through - through.transpose(0, 1))
    beta = torch.zeros_like(W[0])
    for k in range(1, n):
        beta[k] = _over((F[k, :k] + W[k, :k] * beta[:k]).sum(0), out[k])
    return beta


def _over(x: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, x / total, 0)
