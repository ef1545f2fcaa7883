"""Triton: res as a convex combination of permutations, and its backward, in registers, for BT tokens at a time.

The maps, and the order of permutations and logits: hcmegatron/kernels/torch_permutations.py. Matrices are [BT, NP, NP],
NP the power of two at or above n; logits are [BT, RP], RP that at or above their number R, and weights [BT, WP].
"""

from __future__ import annotations

import itertools
import math

import triton
import triton.language as tl

from hcmegatron.kernels import triton_coefficients as coefficients


@triton.constexpr_function
def permutations(N, RES_MAP):
    """How many."""
    return N if RES_MAP == "kronecker" else math.factorial(N)


@triton.constexpr_function
def lanes(N, RES_MAP):
    """WP."""
    return triton.next_power_of_2(N if RES_MAP == "kronecker" else math.factorial(N))


@triton.constexpr_function
def _ones(p, N):
    """The p-th permutation matrix in lexicographic order, as bits of its entries row by row."""
    image = next(itertools.islice(itertools.permutations(range(N)), p, None))
    return sum(1 << (o * N + i) for o, i in enumerate(image))


@triton.jit
def _is_one(p: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, RES_MAP: tl.constexpr):
    """Where the p-th permutation matrix is one: [1,NP,NP]."""
    at, entry = coefficients.entries(N, NP, False)
    if RES_MAP == "kronecker":
        a = tl.arange(0, NP)[None, :, None]
        b = tl.arange(0, NP)[None, None, :]
        ones = (a ^ b) == p
    else:  # not what follows a return, which is compiled too: eight streams' bits fill no int32
        ones = ((_ones(p, N) >> at) & 1) == 1
    return entry & ones


@triton.jit
def _adds(column: tl.constexpr, N: tl.constexpr, R: tl.constexpr, WP: tl.constexpr):
    """Which permutations of a Kronecker product add a column of logits to their own: [1,WP]."""
    highest: tl.constexpr = R // 2 - 1
    p = tl.arange(0, WP)[None, :]
    return (((p >> (highest - column // 2)) & 1) == column % 2) & (p < N)


@triton.jit
def _weights(
    logits,
    N: tl.constexpr,
    R: tl.constexpr,
    RES_MAP: tl.constexpr,
):
    """Of the permutations [BT,WP], zero beyond them."""
    WP: tl.constexpr = lanes(N, RES_MAP)
    if RES_MAP == "kronecker":
        column = tl.arange(0, logits.shape[1])[None, :]
        own = tl.zeros([logits.shape[0], WP], tl.float32)
        for c in tl.static_range(R):
            one = tl.sum(tl.where(column == c, logits, 0.0), axis=1)
            own += tl.where(_adds(c, N, R, WP), one[:, None], 0.0)
    else:
        own = logits
    there = (tl.arange(0, WP) < permutations(N, RES_MAP))[None, :]
    own = tl.where(there, own, float("-inf"))
    e = tl.exp(own - tl.max(own, axis=1, keep_dims=True))
    return e / tl.sum(e, axis=1, keep_dims=True)


@triton.jit
def forward(
    logits,
    N: tl.constexpr,
    NP: tl.constexpr,
    R: tl.constexpr,
    RES_MAP: tl.constexpr,
):
    """Logits [BT,RP] -> matrices [BT,NP,NP], zero in the padding."""
    w = _weights(logits, N, R, RES_MAP)
    lane = tl.arange(0, w.shape[1])[None, :]
    M = tl.zeros([w.shape[0], NP, NP], tl.float32)
    for p in tl.static_range(permutations(N, RES_MAP)):
        one = tl.sum(tl.where(lane == p, w, 0.0), axis=1)
        M += tl.where(_is_one(p, N, NP, RES_MAP), one[:, None, None], 0.0)
    return M


@triton.jit
def backward(
    logits,
    dM,
    N: tl.constexpr,
    NP: tl.constexpr,
    R: tl.constexpr,
    RES_MAP: tl.constexpr,
):
    """Gradient of the logits [BT,RP] from that of the matrices [BT,NP,NP]; zero in the padding."""
    w = _weights(logits, N, R, RES_MAP)
    lane = tl.arange(0, w.shape[1])[None, :]
    dw = tl.zeros([w.shape[0], w.shape[1]], tl.float32)
    for p in tl.static_range(permutations(N, RES_MAP)):
        one = tl.sum(tl.sum(tl.where(_is_one(p, N, NP, RES_MAP), dM, 0.0), axis=2), axis=1)
        dw = tl.where(lane == p, one[:, None], dw)
    d = w * (dw - tl.sum(w * dw, axis=1, keep_dims=True))
    if RES_MAP == "kronecker":
        column = tl.arange(0, logits.shape[1])[None, :]
        dlogits = tl.zeros([logits.shape[0], logits.shape[1]], tl.float32)
        for c in tl.static_range(R):
            one = tl.sum(tl.where(_adds(c, N, R, lanes(N, RES_MAP)), d, 0.0), axis=1)
            dlogits = tl.where(column == c, one[:, None], dlogits)
        d = dlogits
    return d
