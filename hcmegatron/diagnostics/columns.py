"""What is kept of a token at a sub-layer, as numbers beside each other, so that ranks can add up what they have.

Letters: t tokens, n streams or fractions, w the streams' width in units of C (n, or 1 where the n are fractions of one
stream), m = n / w: of how many fractions x is put together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.descriptor import Settings


@dataclass(frozen=True)
class Columns:
    """The shapes of a token's numbers by name, in their order."""

    n: int
    m: int

    @classmethod
    def of(cls, conn: Settings) -> Columns:
        """Those of a kind: `connection.n` streams or fractions where it reads that, else one stream."""
        n = conn.n if "n" in accounting.kind_of(conn).fields else 1
        return cls(n, n // accounting.streams(conn))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Coefficients; norms and cosines of the streams that were read; the share of activations that are saturated,
        and the largest one."""
        n = self.n
        coefficients = {"pre": (self.m, n), "post": (n,), "res": (n, n)}
        return {**coefficients, "norm": (n,), "similarity": (n, n), "saturated": (), "activation": ()}

    @property
    def width(self) -> int:
        """Numbers a token."""
        return sum(map(math.prod, self.shapes.values()))

    def joined(self, t: int, values: dict[str, Tensor]) -> Tensor:
        """Values of t tokens by name -> [t, width]; what is not given is 0."""
        some = next(iter(values.values()))
        parts = [
            values[name].reshape(t, math.prod(shape))
            if name in values
            else some.new_zeros(t, math.prod(shape))
            for name, shape in self.shapes.items()
        ]
        return torch.cat(parts, -1)

    def split(self, record: Tensor) -> dict[str, Tensor]:
        """[..., width] -> by name [..., *shape]."""
        parts = record.split([math.prod(shape) for shape in self.shapes.values()], -1)
        return {
            name: part.reshape(*part.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def coefficients(self, read: tuple[Tensor, ...], positions: Tensor, rows: Tensor) -> dict[str, Tensor]:
        """What a connection's read returned, as pre [t, m, n], post [t, n] and res [t, n, n] of these tokens, in fp64.

        Coefficients that it does not have are those of the residual connection (connections/connection.py); static ones
        are every token's.
        """
        t, shapes = len(positions), self.shapes
        eye = torch.eye(self.n, dtype=torch.float64, device=positions.device)
        missing = (eye.new_ones(shapes["pre"]), eye.new_ones(shapes["post"]), eye)
        found = {}
        for name, value in zip(("pre", "post", "res"), (*read[:3], *missing[len(read[:3]) :]), strict=True):
            shape = shapes[name]
            if value.numel() == math.prod(shape):
                found[name] = value.double().reshape(shape).expand(t, *shape)
            else:
                found[name] = value.reshape(*value.shape[:2], *shape)[positions, rows].double()
        return found
