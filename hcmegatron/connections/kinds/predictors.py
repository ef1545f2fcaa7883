"""What HC's and FC's dynamic predictors have in common: a norm in front, and what plain torch keeps of them."""

from __future__ import annotations

from typing import Any

from hcmegatron.connections.kinds.descriptor import Parameter, Parameters
from hcmegatron.connections.kinds.shared_settings import Predicted


def _plain(conn: Predicted) -> bool:
    return conn.norm.endswith("_plain")


def norm_weight(conn: Predicted, width: int) -> Parameters:
    """|norm| of a predictor over `width` channels. Norms carry a weight and no bias, as the papers count."""
    return {} if _plain(conn) else {"norm_weight": Parameter((width,), "norm")}


def predictor_bytes(conn: Any, state: int, itemsize: int, *, predicted: int, read: int) -> int:
    """Bytes a token: streams of `state` numbers in their own precision; normalised before and after the norm's weight,
    and a copy in fp32 for each of two uses if they are narrower; the coefficients.

    Args:
        predicted, read: coefficients that are predicted, and those of the read.
    """
    n, compute = conn.n, max(itemsize, 4)
    copies = 1 + (not _plain(conn)) + 2 * (itemsize < compute)
    held: int = state * (itemsize + copies * compute) + compute * (n + predicted + read + n + n * n)
    return held


def activated(coefficient: Any, static: Any, scale: Any) -> Any:
    """tanh's values out of `static + scale tanh(...)`; zeros where the scale is 0 and nothing of them is left."""
    difference = coefficient - static
    return difference / scale if float(scale) else 0 * difference
