"""What HC's and FC's dynamic predictors have in common: a norm in front, and what reads and writes keep."""

from __future__ import annotations

from typing import Any

from hcmegatron.connections.kinds.descriptor import Parameter, Parameters
from hcmegatron.connections.kinds.shared_settings import Predicted


def _plain(conn: Predicted) -> bool:
    return conn.norm.endswith("_plain")


def norm_weight(conn: Predicted, width: int) -> Parameters:
    """|norm| of a predictor over `width` channels. Norms carry a weight and no bias, as the papers count."""
    return {} if _plain(conn) else {"norm_weight": Parameter((width,), "norm")}


def kept_bytes(conn: Any, state: int, itemsize: int, *, read: int, predicted: int = 0) -> int:
    """Bytes a token: streams of `state` numbers in their own precision; in fp32 or better what was predicted and 1 /
    rms of every stream, and the coefficients of the read, the write and the carry.

    Args:
        read: coefficients of the read.
        predicted: coefficients that are predicted, 0 without a dynamic part.
    """
    n = conn.n
    numbers = (predicted + n if predicted else 0) + read + n + n * n
    return int(state * itemsize + max(itemsize, 4) * numbers)


def activated(coefficient: Any, static: Any, scale: Any) -> Any:
    """tanh's values out of `static + scale tanh(...)`; zeros where the scale is 0 and nothing of them is left."""
    difference = coefficient - static
    return difference / scale if float(scale) else 0 * difference
