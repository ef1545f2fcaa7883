"""Manifold-Constrained Hyper-Connections (mHC, 2512.24880), with the named variants of other implementations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from hcmegatron.connections.kinds.descriptor import (
    AT_LEAST_1,
    ConnectionDescriptor,
    Parameter,
    Parameters,
    setting,
)
from hcmegatron.connections.kinds.heads import Streams
from hcmegatron.connections.kinds.shared_settings import Rooted, Trained

_OPEN = 0.999  # of a gate that can still be trained: of one stream alone, whose read is normed anyway


@dataclass
class ManifoldSettings(Rooted, Trained, Streams):
    """mHC."""

    sinkhorn_iterations: int = setting(20, AT_LEAST_1, tries=(20, 1, 3))
    sinkhorn_eps: Literal["none", "additive", "clamp"] = setting("none")  # additive, clamp: 1e-6
    res_orientation: Literal["paper", "deepseek_v4", "column_last"] = setting("paper")
    use_pre: bool = setting(True)  # the paper's ablation: false fixes pre = 1/n
    use_post: bool = setting(True)  # false fixes post = 1
    use_res: bool = setting(True)  # false fixes res = I


def _columns(conn: ManifoldSettings) -> dict[str, tuple[int, ...]]:
    """Shapes of what is predicted; disabled parts own no parameters."""
    n = conn.n
    shapes = {"pre": (n,), "post": (n,), "res": (n, n)}
    used = {"pre": conn.use_pre, "post": conn.use_post, "res": conn.use_res}
    return {name: shape for name, shape in shapes.items() if used[name]}


def _width(conn: ManifoldSettings) -> int:
    """Columns of phi."""
    return conn.n * conn.use_pre + conn.n * conn.use_post + conn.n * conn.n * conn.use_res


def _parameters(conn: ManifoldSettings, C: int) -> Parameters:
    parts = _columns(conn)
    phi = {"phi": Parameter((conn.n * C, _width(conn)), "projection", "matrix")} if parts else {}
    of_parts = {
        f"{letter}_{name}": parameter
        for name, shape in parts.items()
        for letter, parameter in (("alpha", Parameter((1,), "gate")), ("b", Parameter(shape, "static")))
    }
    return phi | of_parts


def _ineffective(conn: ManifoldSettings) -> dict[str, str]:
    ineffective: dict[str, str] = {}
    if not (conn.use_pre or conn.use_post or conn.use_res):
        reason = "connection.use_pre, use_post and use_res are false"
        ineffective |= dict.fromkeys(("lr_multiplier", "alpha_init", "rms_eps"), reason)
    if not conn.use_pre:
        ineffective["pre_eps"] = "connection.use_pre is false"
    if not conn.use_res:
        sinkhorn = ("sinkhorn_iterations", "sinkhorn_eps", "res_orientation")
        ineffective |= dict.fromkeys(sinkhorn, "connection.use_res is false")
    return ineffective


def _activations(conn: ManifoldSettings, own: Any, pre: Any, post: Any, res: Any) -> dict[str, Any]:
    """Of the gates sigmoid(l) and 2 sigmoid(l), where sigmoid(l) = (1 + tanh(l / 2)) / 2."""
    found = {"pre": 2 * (pre - conn.pre_eps) - 1} if conn.use_pre else {}
    return found | ({"post": post - 1} if conn.use_post else {})


def _as_residual(conn: ManifoldSettings, k: int) -> dict[str, Any]:
    """post = 1 and sum_i pre_i = 1, more of it from stream k mod n: equal streams stay equal for any res whose rows sum
    to 1, and later reads give them different gradients. Without pre the mean is read, which a doubly stochastic res
    leaves alone, and the streams are told apart by post, whose mean is 1."""
    n = conn.n
    shares = [math.exp(i == k % n) / (n - 1 + math.e) for i in range(n)]
    values: dict[str, Any] = {}
    if conn.use_pre:
        pre = [min(share - conn.pre_eps, _OPEN) for share in shares]
        values["b_pre"] = [math.log(p / (1 - p)) for p in pre]
    if conn.use_post:
        post = [1.0 if conn.use_pre else 1 + (share - 1 / n) / 4 for share in shares]
        values["b_post"] = [math.log(p / (2 - p)) for p in post]
    return values


MHC = ConnectionDescriptor(
    name="mhc",
    title="Manifold-Constrained Hyper-Connections (2512.24880)",
    settings=ManifoldSettings,
    module="hcmegatron.connections.manifold:Manifold",
    parameters=_parameters,
    flops=lambda conn, C: 2 * conn.n * (conn.n + 2) * C + 2 * conn.n * C * _width(conn),
    # the read and the write keep no copies of the streams
    saved_bytes=lambda conn, C, itemsize: (
        conn.n * C * itemsize + max(itemsize, 4) * (2 * conn.n * conn.n + 4 * conn.n + 1)
    ),
    streams=lambda conn: conn.n,
    folds=True,
    starts="near",
    as_residual=_as_residual,
    doubly_stochastic=lambda conn: conn.use_res,
    activations=_activations,
    ineffective=_ineffective,
    paper_overhead=lambda conn: 0.067 if conn.n == 4 else None,  # section 4.3, its 27B model
)
