"""KromHC (2601.21579): mHC whose residual matrix is a Kronecker product of mixtures of two streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hcmegatron.connections.kinds.constrained import ConstrainedSettings, constrained
from hcmegatron.connections.kinds.descriptor import Shown


@dataclass
class KromSettings(ConstrainedSettings):
    """KromHC."""


def _problem(conn: Any, C: int, shown: Shown) -> tuple[str, str] | None:
    n = conn.n
    if n >= 2 and n & (n - 1) == 0:
        return None
    below, above = 1 << (n.bit_length() - 1), 1 << n.bit_length()
    return (
        f"{shown('connection.n')} is no power of two from 2 on ({shown('connection.kind')})",
        f"use {2 if n < 2 else f'{below} or {above}'} for connection.n, or mhc for connection.kind",
    )


KROM = constrained(
    lambda n: (n.bit_length() - 1, 2),
    name="krom",
    title="KromHC, a Kronecker product (2601.21579)",
    settings=KromSettings,
    module="hcmegatron.connections.krom:Krom",
    problem=_problem,
)
