"""Tokens whose squares leave the range of their precision, brought near 1 by powers of two, for torch.

fp32 squares numbers beyond 1.8e19 to infinity and numbers below 1e-19 to what has few digits or is zero. A
root mean square, and everything that is divided by it, is as exact as for other tokens once the token is
multiplied by a power of two: no mantissa changes. What is formed from the product is then divided by it.
"""

from __future__ import annotations

import torch
from torch import Tensor

ORDINARY = 2.0**40  # a token with a root mean square between 1 / this and this is taken as it is


def root_mean_square(x: Tensor) -> Tensor:
    """Of x [..., W] -> [...], infinite or too small where squares leave the range."""
    return torch.linalg.vector_norm(x, dim=-1) / x.shape[-1] ** 0.5


def scaling(rms: Tensor, x: Tensor, floor: float) -> Tensor | None:
    """What to multiply tokens x by before they are squared, or None if all are fine as they are.

    On a GPU the answer would have to be waited for: there it is never None.

    Args:
        rms: [...], root mean squares of x as they came out: right, or infinite, or too small.
        x: [..., W].
        floor: a size below which an epsilon outweighs x, so that no token is brought above it.

    Returns:
        Powers of two [...], 1 for tokens that are fine as they are.
    """
    if x.device.type == "cpu" and _all_ordinary(rms):
        return None
    fine = (rms > 1 / ORDINARY) & (rms < ORDINARY)
    return torch.where(fine, 1.0, to_one(x.detach().abs().amax(-1).clamp(min=floor)))


def _all_ordinary(rms: Tensor) -> bool:
    if rms.numel() == 0:
        return True
    low, high = torch.aminmax(rms)  # NaN where there is one
    return bool(low > 1 / ORDINARY) and bool(high < ORDINARY)


def to_one(size: Tensor) -> Tensor:
    """The power of two that brings `size` to [0.5, 1), as far as it and its inverse are normal; 1 for zero."""
    ends = torch.finfo(size.dtype)
    normal = size.clamp(ends.tiny, ends.max / 8)
    return torch.where(size == 0, 1.0, torch.frexp(normal).mantissa / normal)
