"""Identity-carry Hyper-Connections (ihc): mHC's gates over streams that nothing mixes, as in Hy4 and OLMo-core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hcmegatron.connections.kinds.constrained import gates_as_residual
from hcmegatron.connections.kinds.descriptor import (
    NOT_NEGATIVE,
    ConnectionDescriptor,
    Parameter,
    Parameters,
    setting,
)
from hcmegatron.connections.kinds.heads import Streams
from hcmegatron.connections.kinds.shared_settings import Rooted, Trained


@dataclass
class IdentitySettings(Rooted, Trained, Streams):
    """ihc."""

    rms_scaling: bool = setting(
        True
    )  # the streams' projection over their root mean square (Hy4); OLMo-core: false
    post_eps: float = setting(0.0, NOT_NEGATIVE, tries=(0.0, 1e-6))  # added to post (Hy4: 1e-6)
    # how b_pre begins: 5 for stream k mod n of sub-layer k and -5 for the others (OLMo-core), or as mHC's
    pre_init: Literal["one_hot", "mhc"] = setting("one_hot", change="beginning")


def _parameters(conn: IdentitySettings, C: int) -> Parameters:
    n = conn.n
    return {
        "phi": Parameter((n * C, 2 * n), "projection", "matrix"),
        "alpha_pre": Parameter((1,), "gate"),
        "b_pre": Parameter((n,), "static"),
        "alpha_post": Parameter((1,), "gate"),
        "b_post": Parameter((n,), "static"),
    }


def _ineffective(conn: IdentitySettings) -> dict[str, str]:
    return {} if conn.rms_scaling else {"rms_eps": "connection.rms_scaling is false"}


def _activations(conn: IdentitySettings, own: Any, pre: Any, post: Any, res: Any) -> dict[str, Any]:
    """Of the gates sigmoid(l) and 2 sigmoid(l), where sigmoid(l) = (1 + tanh(l / 2)) / 2. A pre that begins as one_hot
    begins saturated, as it is meant to."""
    of_pre = {} if conn.pre_init == "one_hot" else {"pre": 2 * (pre - conn.pre_eps) - 1}
    return {**of_pre, "post": post - conn.post_eps - 1}


IHC = ConnectionDescriptor(
    name="ihc",
    title="identity-carry Hyper-Connections (Hy4, OLMo-core)",
    settings=IdentitySettings,
    module="hcmegatron.connections.identity:IdentityCarry",
    parameters=_parameters,
    flops=lambda conn, C: 4 * conn.n * C + 2 * conn.n * C * 2 * conn.n,
    # the read keeps the streams, the write keeps nothing of them
    saved_bytes=lambda conn, C, itemsize: conn.n * C * itemsize + max(itemsize, 4) * (4 * conn.n + 1),
    streams=lambda conn: conn.n,
    carry="identity",
    folds=True,
    as_residual=lambda conn, k: gates_as_residual(conn.n, k, conn.pre_eps, conn.post_eps),
    activations=_activations,
    ineffective=_ineffective,
)
