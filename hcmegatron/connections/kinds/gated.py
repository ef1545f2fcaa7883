"""Gated residual (gr, 2608.30320): a gate for every number of the normed streams, and a factor for every stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hcmegatron.connections.kinds.descriptor import (
    NOT_NEGATIVE,
    ConnectionDescriptor,
    Parameter,
    Parameters,
    setting,
)
from hcmegatron.connections.kinds.heads import Streams
from hcmegatron.connections.kinds.shared_settings import Trained


@dataclass
class GatedSettings(Trained, Streams):
    """gr."""

    gate_rank: int = setting(0, NOT_NEGATIVE, tries=(0, 5, 2))  # r, of the gates' low-rank projection; 0: C/8


def rank(conn: GatedSettings, C: int) -> int:
    """r, at least 1."""
    return conn.gate_rank or max(C // 8, 1)


def _parameters(conn: GatedSettings, C: int) -> Parameters:
    """Its projections are AdamW's, as in 2608.30320, whatever updates the other matrices."""
    n, r = conn.n, rank(conn, C)
    return {
        "gamma": Parameter((n, C), "norm"),
        "W_d": Parameter((n * C, r), "projection"),
        "W_u": Parameter((r, n * C), "projection"),
        "W_w": Parameter((n * C, n), "projection"),
    }


def _columns(conn: GatedSettings, C: int) -> int:
    """Of the three projections, beside the streams' nC."""
    return 2 * rank(conn, C) + conn.n


def _activations(conn: GatedSettings, own: Any, pre: Any, post: Any, res: Any) -> dict[str, Any]:
    """Of the factors 2 sigmoid(l), where sigmoid(l) = (1 + tanh(l / 2)) / 2; of the gates only means are there."""
    return {"post": post - 1}


GR = ConnectionDescriptor(
    name="gr",
    title="gated residual (2608.30320)",
    settings=GatedSettings,
    module="hcmegatron.connections.gated:GatedResidual",
    parameters=_parameters,
    flops=lambda conn, C: 4 * conn.n * C + 2 * conn.n * C * _columns(conn, C),
    # the read keeps the streams and what the gates are made of, the write its factors
    saved_bytes=lambda conn, C, itemsize: (
        conn.n * C * itemsize + max(itemsize, 4) * (3 * conn.n + rank(conn, C))
    ),
    streams=lambda conn: conn.n,
    carry="identity",
    normalises=True,
    passes=7,  # streams; normed streams and logits written and read again, once each and twice; streams for x
    products=_columns,
    activations=_activations,
)
