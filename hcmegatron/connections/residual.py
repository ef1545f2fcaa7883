"""The plain residual connection: x = H, H' = H + y."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hcmegatron.connections.connection import Coefficients, Connection, Projection


class Residual(Connection):
    """Pre-norm residual, bit for bit H + dropout(y + bias): the carry is the identity. Streams are [s, b, 1, C]."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def read(
        self, H: Tensor, projection: Projection | None = None, mix: Tensor | None = None
    ) -> tuple[Tensor, Coefficients]:
        """H [s,b,1,C] -> (its view [s,b,C], ())."""
        return H.flatten(-2), ()
