"""The plain residual connection: H' = H + T(H)."""

from __future__ import annotations

from dataclasses import dataclass

from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor


@dataclass
class ResidualSettings:
    """Nothing to set."""


RESIDUAL = ConnectionDescriptor(
    name="residual",
    title="residual, pre-norm",
    settings=ResidualSettings,
    module="hcmegatron.connections.residual:Residual",
    parameters=lambda conn, C: {},
    flops=lambda conn, C: C,
    saved_bytes=lambda conn, C, itemsize: 0,
    carry="identity",
    kernels=False,
    passes=0,
)
