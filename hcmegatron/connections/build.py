"""Connections and contractions by name, from configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hcmegatron.connections.connection import Connection
from hcmegatron.connections.ends import Contract, ContractHead, expand
from hcmegatron.connections.facts import FRAC, HYPER, check, contraction
from hcmegatron.connections.frac import Frac
from hcmegatron.connections.hyper import Hyper
from hcmegatron.connections.manifold import Manifold
from hcmegatron.connections.residual import Residual
from hcmegatron.kernels.select import select

__all__ = ["build_connection", "build_contract", "expand"]


def build_connection(
    conn: Any,
    hidden_size: int,
    index: int,
    *,
    norm_eps: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    kernels: str = "auto",
    streams: torch.dtype | None = None,
) -> Connection:
    """The connection of one sub-layer.

    conn: config.schema.Connection or its like. index: k, the sub-layer counted from 0 through the whole
    network (attention and FFN each count one). Initial values are a function of (conn, hidden_size, k) and
    draw no random numbers, so every layout starts the same. dtype: of the parameters, fp32 whatever the
    streams' is. kernels: as in hcmegatron.kernels.select, for streams of dtype `streams`, the parameters' if not
    given. Raises ValueError where facts.check or select do.
    """
    check(conn, hidden_size)
    if conn.kind == "residual":
        return Residual()
    chosen = select(kernels, n=conn.n, device=device, dtype=streams or dtype)
    like = {"norm_eps": norm_eps, "kernels": chosen, "dtype": dtype, "device": device}
    if conn.kind in HYPER:
        return Hyper(conn, hidden_size, index, **like)
    if conn.kind in FRAC:
        return Frac(conn, hidden_size, **like)
    return Manifold(conn, hidden_size, index, **like)


def build_contract(
    conn: Any,
    hidden_size: int,
    *,
    norm_eps: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The module that takes streams [s,b,w,C] to h [s,b,C] before the final norm (facts.contraction)."""
    check(conn, hidden_size)
    if contraction(conn) == "head":
        return ContractHead(conn, hidden_size, norm_eps=norm_eps, dtype=dtype, device=device)
    return Contract(mean=contraction(conn) == "mean")
