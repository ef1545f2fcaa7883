"""res as a convex combination of permutations, forward and backward by hand, for torch; tokens last.

M = sum_p w_p P_p, with row o of P_p one in column `images(options)[p][o]`: doubly stochastic to rounding whatever the
weights, without iterating.

- `permutations` (mHC-lite, 2601.05732): all n!, in lexicographic order, w = softmax of a logit each.
- `kronecker` (KromHC, 2601.21579): U_1 (x) ... (x) U_K, n = 2^K, where U_k = u_k0 I + u_k1 (swap) and u_k is the
  softmax of two logits. Entry (o, i) is the product of u_k[bit_k(o) xor bit_k(i)], and so depends on o xor i alone: the
  n permutations are o -> o xor p, and w, a product of softmaxes, is the softmax of the sums of their logits. The first
  factor has the highest bit.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from hcmegatron.kernels.options import ReadOptions


def images(options: ReadOptions) -> list[tuple[int, ...]]:
    """Of every permutation, the column of each row's one; the identity comes first."""
    n = options.n
    if options.res_map == "kronecker":
        return [tuple(o ^ p for o in range(n)) for p in range(n)]
    return list(itertools.permutations(range(n)))


def chosen(options: ReadOptions) -> list[tuple[int, ...]]:
    """Of every permutation, the logits whose sum is its own."""
    if options.res_map == "permutations":
        return [(p,) for p in range(options.res_columns)]
    factors = options.res_columns // 2
    return [tuple(2 * k + (p >> (factors - 1 - k) & 1) for k in range(factors)) for p in range(options.n)]


def forward(logits: Tensor, options: ReadOptions) -> Tensor:
    """Logits [columns, T] -> matrices [n, n, T]."""
    ones, _ = _tables(options, logits.dtype, logits.device)
    return (ones @ _weights(logits, options)).view(options.n, options.n, -1)


def backward(logits: Tensor, dM: Tensor, options: ReadOptions) -> Tensor:
    """Gradient of the logits [columns, T] from that of the matrices [n, n, T]."""
    ones, sums = _tables(options, logits.dtype, logits.device)
    w = _weights(logits, options)
    dw = ones.mT @ dM.reshape(options.n**2, -1)
    dlogits = dw.sub_((w * dw).sum(0, keepdim=True)).mul_(w)
    return dlogits if options.res_map == "permutations" else sums.mT @ dlogits


def _weights(logits: Tensor, options: ReadOptions) -> Tensor:
    """Of the permutations [permutations, T]."""
    if options.res_map == "permutations":
        return torch.softmax(logits, 0)
    return torch.softmax(_tables(options, logits.dtype, logits.device)[1] @ logits, 0)


@functools.cache
def _tables(options: ReadOptions, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The permutations as columns [n n, permutations], and which logits each adds up [permutations, columns]."""
    n, ones_at = options.n, images(options)
    ones = torch.zeros(n * n, len(ones_at), dtype=dtype)
    sums = torch.zeros(len(ones_at), options.res_columns, dtype=dtype)
    for p, (image, logits) in enumerate(zip(ones_at, chosen(options), strict=True)):
        ones[[o * n + i for o, i in enumerate(image)], p] = 1
        sums[p, list(logits)] = 1
    return ones.to(device), sums.to(device)
