"""The plain residual connection: H' = H + T(H)."""

from __future__ import annotations

from dataclasses import dataclass

from hcmegatron.connections.kinds.descriptor import Kind


@dataclass
class Settings:
    """Nothing to set."""


RESIDUAL = Kind(
    name="residual",
    title="residual, pre-norm",
    settings=Settings,
    module="hcmegatron.connections.residual:Residual",
    parameters=lambda conn, C: {},
    flops=lambda conn, C: C,
    saved_bytes=lambda conn, C, itemsize: 0,
    carry="identity",
    kernels=False,
    passes=0,
)
