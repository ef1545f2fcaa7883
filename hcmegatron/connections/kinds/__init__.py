"""The kinds of connections: a descriptor each, without torch. The one list of them.

A new kind is a descriptor in a file of this folder, its module beside connections/residual.py, and a line in KINDS.
Configuration (choices, defaults, ranges, what has no effect, what cannot be), planner, recomputation, optimizer,
initialisation, resuming, tests and tools ask the descriptor; nobody tests for a name.
"""

from __future__ import annotations

from hcmegatron.connections.kinds.descriptor import ConnectionDescriptor
from hcmegatron.connections.kinds.frac import DFC, SFC
from hcmegatron.connections.kinds.hyper import DHC, SHC
from hcmegatron.connections.kinds.manifold import MHC
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
    )
}
DEFAULT = MHC.name
