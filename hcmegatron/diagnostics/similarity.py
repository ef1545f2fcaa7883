"""How alike streams are to each other, and the inputs of neighbouring sub-layers. All of it is pure."""

from __future__ import annotations

import torch
from torch import Tensor

PERCENTILES = (0.05, 0.5, 0.95)  # FC (2503.14125), Fig. 2: the median, between the 5th and the 95th


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[..., C], [..., C] -> [...]: exactly 1 for equal vectors; 0 where one of them is zero."""
    squares = (a * a).sum(-1) * (b * b).sum(-1)
    return (a * b).sum(-1) / squares.sqrt().clamp_min(torch.finfo(a.dtype).tiny)


def stream_similarity(H: Tensor) -> Tensor:
    """Streams [..., n, C] -> cosines [..., n, n] of every two of them."""
    return cosine(H.unsqueeze(-2), H.unsqueeze(-3))


def off_diagonal_mean(similarity: Tensor) -> Tensor:
    """[..., n, n] -> [...], the mean over pairs of different streams; n is at least 2."""
    n = similarity.shape[-1]
    return (similarity.sum((-2, -1)) - similarity.diagonal(dim1=-2, dim2=-1).sum(-1)) / (n * (n - 1))


def percentiles(values: Tensor) -> Tensor:
    """[rows, T] -> [rows, 3], the 5th, 50th and 95th percentile of each, between values linearly."""
    asked = values.new_tensor(PERCENTILES)
    return torch.stack(
        [torch.quantile(row, asked) for row in values]
    )  # it takes no more than 2^24 values at once
