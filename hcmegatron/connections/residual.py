"""The plain residual connection: x = H, H' = H + y."""

from __future__ import annotations

from torch import Tensor

from hcmegatron.connections.connection import Coefficients, Connection, Projection, biased


class Residual(Connection):
    """Pre-norm residual, bit for bit H + dropout(y + bias). Streams are [s, b, 1, C]."""

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
        """H + dropout(y + bias), in H's dtype."""
        return (H + biased(y, bias, dropout, self.training).unsqueeze(-2)).to(H.dtype)
