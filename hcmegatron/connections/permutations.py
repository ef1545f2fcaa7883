"""Doubly stochastic matrices without iterating: convex combinations of permutations, for autograd to follow.

hcmegatron.kernels.torch_permutations has the same with backward by hand.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def permutation_mixture(logits: Tensor, n: int) -> Tensor:
    """sum_p softmax(logits)_p P_p over all n! permutations (mHC-lite, 2601.05732).

    Args:
        logits: [..., n!], of the permutations in lexicographic order, the identity first; row o of P_p has its one in
            column p(o).
        n: of the matrices.

    Returns:
        [..., n, n]; rows and columns sum to 1 to rounding.

    Raises:
        ValueError: not n! logits.
    """
    images = torch.tensor(list(itertools.permutations(range(n))), device=logits.device)
    P = torch.eye(n, dtype=logits.dtype, device=logits.device)[images]
    if logits.shape[-1] != len(P):
        raise ValueError(
            f"logits are {list(logits.shape)}: must be [..., {len(P)}], one a permutation of {n}"
        )
    return torch.einsum("...p,poi->...oi", torch.softmax(logits, -1), P)


def kronecker_mixture(logits: Tensor) -> Tensor:
    """U_1 (x) ... (x) U_K, U_k = u_k0 I + u_k1 (swap), u_k = softmax(logits_k) (KromHC, 2601.21579).

    Args:
        logits: [..., K, 2], K at least 1.

    Returns:
        [..., n, n] with n = 2^K; rows and columns sum to 1 to rounding.

    Raises:
        ValueError: logits of another shape.
    """
    if logits.ndim < 2 or logits.shape[-1] != 2 or not logits.shape[-2]:
        raise ValueError(f"logits are {list(logits.shape)}: must be [..., K, 2], two a factor")
    u = torch.softmax(logits, -1)
    factors = torch.stack([u, u.flip(-1)], -2)  # [..., K, 2, 2]
    M = factors[..., 0, :, :]
    for k in range(1, logits.shape[-2]):
        size = 2 * M.shape[-1]
        outer = torch.einsum("...ab,...cd->...acbd", M, factors[..., k, :, :])
        M = outer.reshape(*outer.shape[:-4], size, size)
    return M
