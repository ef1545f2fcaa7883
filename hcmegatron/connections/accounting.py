"""Widths, counts, FLOPs and rules of a connection, asked of its kind's descriptor. Imports no torch.

`conn` is config.schema.Connection or anything with its fields. C is the hidden size, n the streams of HC and mHC, m =
conn.n the fractions of FC.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from hcmegatron.connections.kinds import KINDS
from hcmegatron.connections.kinds.descriptor import (
    ConnectionDescriptor,
    Head,
    Parameters,
    Settings,
    Shown,
    together,
)
from hcmegatron.connections.kinds.heads import HEADS

# Of single-pass kinds, whatever connection.contract says: the pre that the last sub-layer predicted.
_LAST_MIX = Head("last mix", "hcmegatron.connections.expand_contract:LastMix", flops=lambda n, C: 2 * n * C)


def kind_of(conn: Settings) -> ConnectionDescriptor:
    """The descriptor of `conn.kind`. ValueError where there is none."""
    if conn.kind not in KINDS:
        raise ValueError(f"connection.kind={conn.kind!r}: choose one of {', '.join(KINDS)}")
    return KINDS[conn.kind]


def head_of(conn: Settings) -> Head:
    """How the streams become one. A kind that has no streams has nothing to contract: its sum is a view."""
    if "contract" not in kind_of(conn).fields:
        return HEADS["sum"]
    own: Any = conn  # with the fields of its kind
    if single_pass(conn):
        return _LAST_MIX
    contract = own.contract
    if contract not in HEADS:
        raise ValueError(f"connection.contract={contract!r}: choose one of {', '.join(HEADS)}")
    return HEADS[contract]


def problem(conn: Settings, C: int, shown: Shown) -> tuple[str, str] | None:
    """Why the connection cannot be built at hidden size C, and a remedy; None where it can.

    A field that neither the kind nor its head reads is as good as absent, whatever it holds: `ineffective_fields` says
    which those are.
    """
    kind, ineffective = kind_of(conn), ineffective_fields(conn)
    for name, (_, field) in together([kind.settings, *_settings(head_of(conn))]).items():
        allowed = field.metadata["range"]
        if name not in ineffective and allowed is not None and not allowed.test(getattr(conn, name)):
            return f"{shown(f'connection.{name}')} is out of range", f"it must be {allowed.words}"
    return kind.problem(conn, C, shown)


def check(conn: Settings, C: int) -> None:
    """Refuse a connection that cannot be built at hidden size C: ValueError with setting, value, remedy."""

    def shown(key: str) -> str:
        value = C if key == "model.hidden_size" else getattr(conn, key.removeprefix("connection."))
        return f"{key} = {value}"

    if found := problem(conn, C, shown):
        raise ValueError("; ".join(found))


def ineffective_fields(conn: Settings) -> dict[str, str]:
    """Fields of the `connection` section that nothing reads -> why, in words."""
    kind, head = kind_of(conn), head_of(conn)
    ineffective = dict.fromkeys(
        fields().keys() - kind.fields, f"connection.kind is {kind.name}"
    ) | kind.ineffective(conn)
    return {name: reason for name, reason in ineffective.items() if name not in head.fields}


def streams(conn: Settings) -> int:
    """Width factor of the stream between sub-layers and between pipeline stages, in units of C."""
    return kind_of(conn).streams(conn)


def single_pass(conn: Settings) -> bool:
    """Whether sub-layers read with the pre of the one before them (ConnectionDescriptor.single_pass)."""
    return kind_of(conn).single_pass(conn)


def message_bytes(conn: Settings, C: int, itemsize: int) -> int:
    """Bytes a token between pipeline stages, for streams of `itemsize` bytes a number: the streams, and where the kind
    is single-pass a pre in fp32 or better."""
    n = streams(conn)
    return n * C * itemsize + single_pass(conn) * n * max(itemsize, 4)


def table(conn: Settings, C: int) -> Parameters:
    """The parameters of one sub-layer's connection."""
    return kind_of(conn).parameters(conn, C)


def head_table(conn: Settings, C: int) -> Parameters:
    """The parameters of the contraction, once per network."""
    return head_of(conn).parameters(streams(conn), C)


def parameters(conn: Settings, C: int) -> int:
    """Exact number of parameters of one sub-layer's connection (HC: 2409.19606 B.1; FC: 2503.14125; mHC:
    2512.24880)."""
    return sum(parameter.count for parameter in table(conn, C).values())


def contract_parameters(conn: Settings, C: int) -> int:
    """Parameters of the contraction, once per network."""
    return sum(parameter.count for parameter in head_table(conn, C).values())


def flops(conn: Settings, C: int) -> int:
    """Forward FLOPs per token of one connection (ConnectionDescriptor.flops)."""
    return kind_of(conn).flops(conn, C)


def paper_flops(conn: Settings, C: int) -> int | None:
    """The same by the formula that the paper prints, None where it prints none that can be evaluated."""
    return kind_of(conn).paper_flops(conn, C)


def contract_flops(conn: Settings, C: int) -> int:
    """Forward FLOPs per token of the contraction, once per network."""
    return head_of(conn).flops(streams(conn), C)


def saved_bytes(conn: Settings, C: int, itemsize: int) -> int:
    """Bytes a token that backward holds of one connection without recomputation (ConnectionDescriptor.saved_bytes)."""
    return kind_of(conn).saved_bytes(conn, C, itemsize)


def _settings(head: Head) -> list[type]:
    return [head.settings] if head.settings else []


def all_settings() -> list[type]:
    """The settings of every kind and every head."""
    of_kinds = [kind.settings for kind in KINDS.values()]
    return of_kinds + [cls for head in HEADS.values() for cls in _settings(head)]


def fields() -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """Every field of the `connection` section -> its type and definition."""
    return _fields(tuple(KINDS))


@cache  # by the kinds that there are: one may be registered
def _fields(kinds: tuple[str, ...]) -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    return together(all_settings())
