"""Applying coefficients to streams: the three linear operations that HC, FC and mHC share.

All take streams [..., n, C] of any float dtype and coefficients in fp32 or fp64, sum in the coefficients'
precision and round once, to the streams' dtype.
"""

from __future__ import annotations

from torch import Tensor


def aggregate(H: Tensor, pre: Tensor) -> Tensor:
    """x = sum_i pre[i] H_i. H [..., n, C], pre [n] or [..., n] -> [..., C]."""
    return (pre.unsqueeze(-2) @ H.to(pre.dtype)).squeeze(-2).to(H.dtype)


def mix(H: Tensor, res: Tensor) -> Tensor:
    """out[o] = sum_i res[o,i] H_i. H [..., n, C], res [o, n] or [..., o, n] -> [..., o, C], in res's
    dtype."""
    return res @ H.to(res.dtype)


def mix_and_add(H: Tensor, y: Tensor, post: Tensor, res: Tensor) -> Tensor:
    """H'_o = sum_i res[o,i] H_i + post[o] y_o.

    H [..., n, C]; y [..., 1, C], the same for all streams (HC, mHC), or [..., n, C], one part each (FC); post
    [n] or [..., n]; res [n, n] or [..., n, n].
    """
    return (mix(H, res) + post.unsqueeze(-1) * y.to(post.dtype)).to(H.dtype)
