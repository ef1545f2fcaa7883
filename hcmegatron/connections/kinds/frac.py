"""Frac-Connections (FC, 2503.14125): static SFC and dynamic DFC over n contiguous fractions of the hidden state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor, Parameter, Parameters, Shown
from hcmegatron.connections.kinds.multiples import nearest_multiples
from hcmegatron.connections.kinds.predictors import activated, kept_bytes, norm_weight
from hcmegatron.connections.kinds.shared_settings import Predicted, Several, Trained


@dataclass
class FracSettings(Trained, Several):
    """SFC."""


@dataclass
class DynamicFracSettings(Predicted, FracSettings):
    """DFC."""


def _static(conn: FracSettings, C: int) -> Parameters:
    m = conn.n
    return {name: Parameter(shape, "static") for name, shape in {"Y": (m, m), "A": (m, m), "B": (m,)}.items()}


def _dynamic(conn: DynamicFracSettings, C: int) -> Parameters:
    width = C // conn.n
    return {
        **_static(conn, C),
        "W_alpha": Parameter((width, 2 * conn.n), "projection", "matrix"),
        "W_beta": Parameter((width,), "projection"),
        "s_a": Parameter((1,), "scale"),
        "s_b": Parameter((1,), "scale"),
        **norm_weight(conn, width),
    }


def _fractions(conn: FracSettings, C: int, shown: Shown) -> tuple[str, str] | None:
    if C % conn.n == 0:
        return None
    return (
        f"{shown('model.hidden_size')} is not divisible by {shown('connection.n')} fractions "
        f"({shown('connection.kind')})",
        f"use {nearest_multiples(C, conn.n)} for model.hidden_size, or a divisor of {C} for connection.n",
    )


def _activations(conn: DynamicFracSettings, own: Any, pre: Any, post: Any, res: Any) -> dict[str, Any]:
    if not conn.tanh:
        return {}
    return {
        "pre": activated(pre, own.Y.mT, own.s_a),
        "post": activated(post, own.B, own.s_b),
        "res": activated(res, own.A.mT, own.s_a),
    }


SFC = ConnectionDescriptor(
    name="sfc",
    title="static Frac-Connections (2503.14125)",
    settings=FracSettings,
    module="hcmegatron.connections.frac:Frac",
    parameters=_static,
    flops=lambda conn, C: 2 * (2 * conn.n + 1) * C,
    saved_bytes=lambda conn, C, itemsize: kept_bytes(conn, C, itemsize, read=conn.n**2),
    passes=1,
    problem=_fractions,
)
DFC = ConnectionDescriptor(
    name="dfc",
    title="dynamic Frac-Connections (2503.14125)",
    settings=DynamicFracSettings,
    module="hcmegatron.connections.frac:DynamicFrac",
    parameters=_dynamic,
    flops=lambda conn, C: 4 * (2 * conn.n + 1) * C,
    saved_bytes=lambda conn, C, itemsize: kept_bytes(
        conn, C, itemsize, predicted=conn.n * (2 * conn.n + 1), read=conn.n * conn.n
    ),
    problem=_fractions,
    activations=_activations,
)
