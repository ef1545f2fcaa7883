"""How much residual maps let a signal grow: forward by their row sums, backward by their column sums.

Maps are [..., n, n] with H_out = res H_in: rows are outputs. S sub-layers in depth order, T tokens. All of it is pure.
"""

from __future__ import annotations

import torch
from torch import Tensor


def amax_gains(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The Amax gain magnitudes of mHC (2512.24880, Fig. 3), [...] each, of maps [..., n, n].

    Forward: the largest absolute row sum, by which a signal equal in all streams can grow. Backward: the largest
    absolute column sum, the same for a gradient.
    """
    return maps.sum(-1).abs().amax(-1), maps.sum(-2).abs().amax(-1)


def composites(res: Tensor) -> Tensor:
    """res [S, T, n, n] -> the product from every sub-layer to the end of the stack, [S, T, n, n], token by token:
    composite[s] = res[S-1] ... res[s]."""
    products = [res[-1]]
    for matrix in reversed(res[:-1]):
        products.append(products[-1] @ matrix)
    return torch.stack(products[::-1])


def doubly_stochastic_error(maps: Tensor) -> Tensor:
    """[..., n, n] -> [...], the largest deviation of a row or column sum from 1."""
    sums = torch.cat([maps.sum(-1), maps.sum(-2)], -1)
    return (sums - 1).abs().amax(-1)


def row_entropy(maps: Tensor) -> Tensor:
    """[..., n, n] -> [...], nats: the mean over rows of the entropy of their absolute entries, divided by their sum.

    0 where every row takes from one stream, ln n where it takes from all alike. A row of zeros has none, and counts 0.
    """
    p = maps.abs()
    p = p / p.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return -torch.special.xlogy(p, p).sum(-1).mean(-1)


def logit_range(maps: Tensor) -> Tensor:
    """[..., n, n] of positive entries -> [...]: largest minus smallest entry of ln res, its rows and columns centred.

    Sinkhorn's iterations add one number to each row and each column of the logits. Centring takes them out: what is
    left is the spread of the centred logits themselves, whatever the iterations made of them.
    """
    logs = maps.clamp_min(torch.finfo(maps.dtype).tiny).log()
    logs = logs - logs.mean(-1, keepdim=True)
    logs = (logs - logs.mean(-2, keepdim=True)).flatten(-2)
    return logs.amax(-1) - logs.amin(-1)
