"""Manifold-Constrained Hyper-Connections (mHC, 2512.24880), with the named variants of other implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hcmegatron.connections.kinds.constrained import ConstrainedSettings, constrained
from hcmegatron.connections.kinds.descriptor import AT_LEAST_1, Shown, setting


@dataclass
class ManifoldSettings(ConstrainedSettings):
    """mHC."""

    sinkhorn_iterations: int = setting(20, AT_LEAST_1, tries=(20, 1, 3))
    sinkhorn_eps: Literal["none", "additive", "clamp"] = setting("none")  # additive, clamp: 1e-6
    # implicit: the gradient of what the iterations converge to, at the matrix that they reached
    sinkhorn_backward: Literal["iterations", "implicit"] = setting("iterations", change="applied")
    res_orientation: Literal["paper", "deepseek_v4", "column_last"] = setting("paper")


def _problem(conn: ManifoldSettings, C: int, shown: Shown) -> tuple[str, str] | None:
    if conn.sinkhorn_backward != "implicit" or conn.sinkhorn_eps == "none" or not conn.use_res:
        return None
    return (
        f"{shown('connection.sinkhorn_backward')} is the gradient of the map without an epsilon "
        f"({shown('connection.sinkhorn_eps')})",
        "use none for connection.sinkhorn_eps, or iterations for connection.sinkhorn_backward",
    )


MHC = constrained(
    lambda n: (n, n),
    of_res=("sinkhorn_iterations", "sinkhorn_eps", "sinkhorn_backward", "res_orientation"),
    sinkhorn=lambda conn: conn.use_res,
    paper_overhead=0.067,  # section 4.3, its 27B model
    name="mhc",
    title="Manifold-Constrained Hyper-Connections (2512.24880)",
    settings=ManifoldSettings,
    module="hcmegatron.connections.manifold:Manifold",
    problem=_problem,
)
