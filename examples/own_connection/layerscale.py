"""LayerScale's module: the read and the carry are the residual's, the write has weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hcmegatron.connections.connection import Coefficients, Connection, Projection, biased, compute_dtype


class LayerScale(Connection):
    """H' = H + gamma * dropout(y + bias), summed in fp32 or better. Streams are [s, b, 1, C]."""

    def __init__(
        self, conn: Any, C: int, index: int, *, dtype: torch.dtype, device: Any = None, **_: Any
    ) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((C,), conn.gamma_init, dtype=dtype, device=device))

    def read(self, H: Tensor, projection: Projection | None = None) -> tuple[Tensor, Coefficients]:
        """H [s,b,1,C] -> (its view [s,b,C], ())."""
        return H.flatten(-2), ()

    def write(
        self,
        H: Tensor,
        y: Tensor,
        coefficients: Coefficients,
        bias: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """The sub-layer's output, weighed."""
        dtype = compute_dtype(H)
        y = biased(y, bias, dropout, self.training).to(dtype)
        return (H + (self.gamma.to(dtype) * y).unsqueeze(-2)).to(H.dtype)
