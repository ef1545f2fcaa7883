"""Connections and contractions by name: from keyword arguments, or from a run's configuration."""

from __future__ import annotations

import importlib
from typing import Any, TypeVar, cast

import torch
from torch import nn

from hcmegatron.connections import accounting
from hcmegatron.connections.connection import Built, Connection
from hcmegatron.connections.kinds import DEFAULT
from hcmegatron.connections.kinds.descriptor import Parameter, Parameters, Settings
from hcmegatron.connections.kinds.heads import HEADS
from hcmegatron.connections.settings import changed, settings_of
from hcmegatron.kernels.select import select_kernels

M = TypeVar("M", bound=nn.Module)


def connection(
    kind: str = DEFAULT,
    *,
    hidden_size: int,
    index: int = 0,
    norm_eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    kernels: str = "auto",
    stream_dtype: torch.dtype | None = None,
    **settings: Any,
) -> Connection:
    """The connection of one sub-layer: `connection("mhc", hidden_size=512, streams=4, index=3)`.

    Args:
        kind: residual, shc, dhc (2409.19606), sfc, dfc (2503.14125), mhc (2512.24880), mhc_lite (2601.05732), krom
            (2601.21579), ihc, gr (2608.30320), or one that was registered.
        hidden_size: C, of the sub-layer's input and output.
        index: of the sub-layer, counted from 0 through the whole network (attention and MLP each count one). Initial
            values depend on it: it is what lets the streams differ.
        norm_eps: of the norm in front of what predicts coefficients.
        dtype: of the parameters; fp32 unless everything is fp64.
        device: of the parameters.
        kernels: `auto`, `torch`, `triton` or `native`, for streams of `stream_dtype` on this device.
        stream_dtype: of the streams that it will read; None: as the parameters.
        **settings: streams (HC, mHC) or fractions (FC), and the kind's others, by their names in the `connection`
            section of a configuration (`hcmegatron config --help`).

    Raises:
        ValueError: an unknown kind or setting, a value that it cannot have, or kernels that cannot run, in one line.
    """
    conn = settings_of(kind, hidden_size, settings)
    if not isinstance(index, int) or index < 0:
        raise ValueError(f"index={index!r}: must be a whole number, 0 for the network's first sub-layer")
    return build_connection(
        conn,
        hidden_size,
        index,
        norm_eps=norm_eps,
        dtype=dtype,
        device=device,
        kernels=kernels,
        streams=stream_dtype,
    )


def contraction(
    how: str = "sum",
    *,
    hidden_size: int,
    streams: int,
    norm_eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> nn.Module:
    """The module that takes streams [s,b,w,C] to h [s,b,C].

    Args:
        how: `sum`, `mean`, or `head`, DeepSeek-V4's learned one, which alone reads norm_eps, dtype and device.
        hidden_size: C.
        streams: w.
        norm_eps: of the root mean square of the streams.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        ValueError: another word for how.
    """
    if how not in HEADS:
        raise ValueError(f"how={how!r}: choose one of {', '.join(HEADS)}")
    head = HEADS[how]
    conn = head.settings() if head.settings else None
    module: nn.Module = _class(head.module)(
        conn, streams, hidden_size, norm_eps=norm_eps, dtype=dtype, device=device
    )
    return _describe(module, head.parameters(streams, hidden_size))


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
    leave torch's generators alone, so every layout starts the same. dtype: of the parameters, fp32 whatever the
    streams' is. kernels: as in hcmegatron.kernels.select, for streams of dtype `streams`, the parameters' if not
    given. Raises ValueError where accounting.check or select do.
    """
    accounting.check(conn, hidden_size)
    kind, own = accounting.kind_of(conn), cast(Any, conn)  # with the fields of its kind
    chosen = None
    if kind.kernels:
        chosen = select_kernels(
            kernels, n=own.n, device=device, dtype=streams or dtype, sinkhorn=kind.sinkhorn(own)
        )
    like = {"norm_eps": norm_eps, "kernels": chosen, "dtype": dtype, "device": device}
    connection: Connection = _class(kind.module)(conn, hidden_size, index, **like)
    connection.built = Built(
        kind.name,
        hidden_size,
        accounting.streams(conn),
        index,
        changed(conn),
        chosen.reason if chosen else None,
        kind.normalises,
    )
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
    contract: nn.Module = _class(head.module)(
        conn, n, hidden_size, norm_eps=norm_eps, dtype=dtype, device=device
    )
    return _describe(contract, head.parameters(n, hidden_size))


def parameter_of(parameter: nn.Parameter) -> Parameter | None:
    """What a descriptor says of a parameter of a connection or contraction; None of any other."""
    return getattr(parameter, "_connection", None)


def _describe(module: M, table: Parameters) -> M:
    """Every parameter of the module with its line of the table, for `parameter_of`."""
    own = dict(module.named_parameters())
    built, listed = {k: tuple(p.shape) for k, p in own.items()}, {k: p.shape for k, p in table.items()}
    assert built == listed, f"{type(module).__name__} has parameters {built}, its descriptor lists {listed}"
    for name, parameter in own.items():
        described: Any = parameter
        described._connection = table[name]
    return module


def _class(place: str) -> Any:
    """Of "package.module:Class"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
