"""Connections and contractions by name, from configuration."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from hcmegatron.connections import accounting
from hcmegatron.connections.connection import Connection
from hcmegatron.connections.expand_contract import expand
from hcmegatron.connections.kinds.descriptor import Parameter, Parameters, Settings
from hcmegatron.kernels.select import select_kernels

__all__ = ["build_connection", "build_contract", "expand", "parameter_of"]


def build_connection(
    conn: Settings,
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
    given. Raises ValueError where accounting.check or select do.
    """
    accounting.check(conn, hidden_size)
    kind = accounting.kind_of(conn)
    chosen = (
        select_kernels(kernels, n=conn.n, device=device, dtype=streams or dtype) if kind.kernels else None
    )
    like = {"norm_eps": norm_eps, "kernels": chosen, "dtype": dtype, "device": device}
    connection = _class(kind.module)(conn, hidden_size, index, **like)
    return _describe(connection, kind.parameters(conn, hidden_size))


def build_contract(
    conn: Settings,
    hidden_size: int,
    *,
    norm_eps: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The module that takes streams [s,b,w,C] to h [s,b,C] before the final norm (accounting.head_of)."""
    accounting.check(conn, hidden_size)
    head, n = accounting.head_of(conn), accounting.streams(conn)
    contract = _class(head.module)(conn, n, hidden_size, norm_eps=norm_eps, dtype=dtype, device=device)
    return _describe(contract, head.parameters(n, hidden_size))


def parameter_of(parameter: nn.Parameter) -> Parameter | None:
    """What a descriptor says of a parameter of a connection or contraction; None of any other."""
    return getattr(parameter, "_connection", None)


def _describe(module: Any, table: Parameters) -> Any:
    """Every parameter of the module with its line of the table, for `parameter_of`."""
    own = dict(module.named_parameters())
    built, listed = {k: tuple(p.shape) for k, p in own.items()}, {k: p.shape for k, p in table.items()}
    assert built == listed, f"{type(module).__name__} has parameters {built}, its descriptor lists {listed}"
    for name, parameter in own.items():
        parameter._connection = table[name]
    return module


def _class(place: str) -> type:
    """Of "package.module:Class"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
