"""Manifold-Constrained Hyper-Connections (mHC, 2512.24880), with the named variants of other implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hcmegatron.connections.kinds.constrained import ConstrainedSettings, constrained
from hcmegatron.connections.kinds.descriptor import AT_LEAST_1, setting


@dataclass
class ManifoldSettings(ConstrainedSettings):
    """mHC."""

    sinkhorn_iterations: int = setting(20, AT_LEAST_1, tries=(20, 1, 3))
    sinkhorn_eps: Literal["none", "additive", "clamp"] = setting("none")  # additive, clamp: 1e-6
    res_orientation: Literal["paper", "deepseek_v4", "column_last"] = setting("paper")


MHC = constrained(
    lambda n: (n, n),
    of_res=("sinkhorn_iterations", "sinkhorn_eps", "res_orientation"),
    paper_overhead=0.067,  # section 4.3, its 27B model
    name="mhc",
    title="Manifold-Constrained Hyper-Connections (2512.24880)",
    settings=ManifoldSettings,
    module="hcmegatron.connections.manifold:Manifold",
)
