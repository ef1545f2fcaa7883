"""Hyper-Connections (HC, 2409.19606): static SHC and dynamic DHC."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor, Parameter, Parameters, setting
from hcmegatron.connections.kinds.heads import Streams
from hcmegatron.connections.kinds.predictors import activated, kept_bytes, norm_weight
from hcmegatron.connections.kinds.shared_settings import Predicted, Trained


@dataclass
class HyperSettings(Trained, Streams):
    """SHC."""

    # output projections' init divided by sqrt(n)
    scale_output_init: bool = setting(
        False, change="beginning", elsewhere="initialise your sub-layers' output projections so"
    )


@dataclass
class DynamicHyperSettings(Predicted, HyperSettings):
    """DHC."""


def _static(conn: HyperSettings, C: int) -> Parameters:
    n = conn.n
    return {
        name: Parameter(shape, "static") for name, shape in {"A_m": (n,), "A_r": (n, n), "B": (n,)}.items()
    }


def _dynamic(conn: DynamicHyperSettings, C: int) -> Parameters:
    return {
        **_static(conn, C),
        "W_m": Parameter((C,), "projection"),
        "W_r": Parameter((C, conn.n), "projection", "matrix"),
        "W_b": Parameter((C,), "projection"),
        "s_a": Parameter((1,), "scale"),
        "s_b": Parameter((1,), "scale"),
        **norm_weight(conn, C),
    }


def _moved(conn: HyperSettings, C: int) -> int:
    """FLOPs of reading, mixing and writing: the formula that the paper's static rows follow exactly. Its dynamic rows,
    like FC's, cannot be reproduced by a count of the operations."""
    return 2 * conn.n * (conn.n + 2) * C


def _divisor(conn: HyperSettings) -> float:
    return math.sqrt(conn.n) if conn.scale_output_init else 1.0


def _activations(conn: DynamicHyperSettings, own: Any, pre: Any, post: Any, res: Any) -> dict[str, Any]:
    if not conn.tanh:
        return {}
    return {
        "pre": activated(pre, own.A_m, own.s_a),
        "post": activated(post, own.B, own.s_b),
        "res": activated(res, own.A_r.mT, own.s_a),
    }


SHC = ConnectionDescriptor(
    name="shc",
    title="static Hyper-Connections (2409.19606)",
    settings=HyperSettings,
    module="hcmegatron.connections.hyper:Hyper",
    parameters=_static,
    flops=_moved,
    paper_flops=_moved,
    saved_bytes=lambda conn, C, itemsize: kept_bytes(conn, conn.n * C, itemsize, read=conn.n),
    streams=lambda conn: conn.n,
    passes=1,
    output_init_divisor=_divisor,
)
DHC = ConnectionDescriptor(
    name="dhc",
    title="dynamic Hyper-Connections (2409.19606)",
    settings=DynamicHyperSettings,
    module="hcmegatron.connections.hyper:DynamicHyper",
    parameters=_dynamic,
    flops=lambda conn, C: 2 * _moved(conn, C),
    saved_bytes=lambda conn, C, itemsize: kept_bytes(
        conn, conn.n * C, itemsize, predicted=conn.n * (conn.n + 2), read=conn.n
    ),
    streams=lambda conn: conn.n,
    output_init_divisor=_divisor,
    activations=_activations,
)
