"""The kinds of connections: a descriptor each, without torch. The one list of them.

A new kind is a descriptor in a file of this folder, its module beside connections/residual.py, and a line in KINDS; or,
outside this package, a descriptor that `register` is called with (plugins.py). Configuration (choices, defaults,
ranges, what has no effect, what cannot be), planner, recomputation, optimizer, initialisation, resuming, tests and
tools ask the descriptor; nobody tests for a name.
"""

from __future__ import annotations

import sys

from hcmegatron.connections.kinds import plugins
from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor
from hcmegatron.connections.kinds.frac import DFC, SFC
from hcmegatron.connections.kinds.gated import GR
from hcmegatron.connections.kinds.hyper import DHC, SHC
from hcmegatron.connections.kinds.identity import IHC
from hcmegatron.connections.kinds.krom import KROM
from hcmegatron.connections.kinds.manifold import MHC
from hcmegatron.connections.kinds.manifold_lite import MHC_LITE
from hcmegatron.connections.kinds.residual import RESIDUAL

KINDS: dict[str, ConnectionDescriptor] = {
    kind.name: kind
    for kind in (
        RESIDUAL,
        SHC,
        DHC,
        SFC,
        DFC,
        MHC,
        MHC_LITE,
        KROM,
        IHC,
        GR,
    )
}
DEFAULT = MHC.name


def register(kind: ConnectionDescriptor) -> ConnectionDescriptor:
    """Add a kind to KINDS, for `connection.kind` and hcmegatron.connection to take its name; returns it.

    Configuration is derived from the kinds when it is imported, and a run's ranks are processes of their own: a kind to
    train with is registered by a module that plugins.py imports.

    Raises:
        ValueError: the name is taken by another kind.
        RuntimeError: configuration has been derived already, without it.
    """
    if KINDS.get(kind.name, kind) is not kind:
        raise ValueError(
            f"a connection kind named {kind.name!r} is there already ({KINDS[kind.name].title}); rename yours"
        )
    if kind.name not in KINDS and hasattr(sys.modules.get("hcmegatron.config.schema"), "Connection"):
        raise RuntimeError(
            f"connection kind {kind.name!r} comes after configuration was derived from the kinds; register it before "
            f"hcmegatron.config is imported, or name its module in {plugins.VARIABLE}"
        )
    KINDS[kind.name] = kind
    return kind


plugins.load()
