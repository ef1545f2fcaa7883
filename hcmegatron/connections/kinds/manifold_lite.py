"""mHC-lite (2601.05732): mHC whose residual matrix is a convex combination of all n! permutations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hcmegatron.connections.kinds.constrained import ConstrainedSettings, constrained
from hcmegatron.connections.kinds.descriptor import Shown

MOST = 4  # streams: five have 120 permutations, 120 columns of phi for a matrix of 25


@dataclass
class ManifoldLiteSettings(ConstrainedSettings):
    """mHC-lite."""


def _problem(conn: Any, C: int, shown: Shown) -> tuple[str, str] | None:
    if conn.n <= MOST:
        return None
    return (
        f"{shown('connection.n')} streams have {math.factorial(conn.n)} permutations, each a column of phi "
        f"({shown('connection.kind')})",
        f"use up to {MOST} streams, or krom or mhc for connection.kind",
    )


MHC_LITE = constrained(
    lambda n: (math.factorial(n),),
    name="mhc_lite",
    title="mHC-lite, all permutations (2601.05732)",
    settings=ManifoldLiteSettings,
    module="hcmegatron.connections.manifold_lite:ManifoldLite",
    problem=_problem,
)
