"""The norm in front of HC's and FC's dynamic predictors, and mHC's root mean square."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

NormKind = Literal["layernorm", "rmsnorm", "layernorm_plain", "rmsnorm_plain"]
RmsEps = Literal["none", "inside", "added"]


def normalise(x: Tensor, kind: NormKind, weight: Tensor | None, eps: float) -> Tensor:
    """LayerNorm or RMSNorm over the last dimension, with weight [C] unless the kind is plain; no bias."""
    if kind.startswith("layernorm"):
        x = x - x.mean(-1, keepdim=True)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight


def inverse_rms(Hv: Tensor, kind: RmsEps, eps: float) -> Tensor:
    """1 / r of mHC's Eq. 15, r = ||Hv||_2 / sqrt(nC). Hv [..., nC] -> [..., 1].

    kind: `none` (the paper), `inside` sqrt(mean square + eps), `added` r + eps. A token of zeros has no
    direction: without an epsilon its 1 / r is defined as 0, so that the projection is 0 instead of NaN.
    """
    square = Hv.square().mean(-1, keepdim=True)
    if kind == "inside":
        return torch.rsqrt(square + eps)
    zero = square == 0
    root = torch.where(zero, 1.0, square).sqrt()
    if kind == "added":
        return torch.where(zero, 1.0 / eps, 1.0 / (root + eps))
    return torch.where(zero, 0.0, 1.0 / root)
