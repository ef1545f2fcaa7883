"""An operation of a layer on one rank for one micro-batch: its times, and the bytes that it keeps.

Times are seconds of forward, input gradient and weight gradient. Bytes are those that autograd holds until backward
(`kept`), those that a deferred weight gradient holds from I to W (`left`), and those that exist only while the
operation runs (`transient`). Tokens T of a micro-batch; with sequence parallelism what is C wide is held in T / t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hcmegatron.config.schema import Config
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.rates import Assumptions, Rates
from hcmegatron.planner.state_bytes import ITEMSIZE
from schedules.node_costs import Role

Family = Literal["compute", "connections", "all-to-all", "tensor parallel"]


@dataclass(frozen=True)
class Operation:
    """One operation of a layer, an embedding or a head.

    Attributes:
        module: what recomputation calls it: connection, core_attn, mla_up_proj, mlp, shared_experts; else empty.
        again: seconds of its forward, run again in backward.
    """

    name: str
    role: Role
    family: Family = "compute"
    module: str = ""
    forward: float = 0.0
    dgrad: float = 0.0
    wgrad: float = 0.0
    again: float = 0.0
    kept: float = 0.0
    left: float = 0.0
    transient: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """Of a micro-batch on a rank: T tokens, of which `local` where the sequence is split; bytes of an element."""

    tokens: int
    local: float
    itemsize: int


def sizes(config: Config) -> Sizes:
    """Of a configuration."""
    tokens = config.training.micro_batch * config.data.sequence_length
    local = tokens / config.parallel.tensor if config.parallel.sequence else tokens
    return Sizes(tokens, local, ITEMSIZE[config.training.dtype])


def is_local(config: Config, assumptions: Assumptions) -> bool:
    """Whether layers are Megatron's local ones, which keep and move more than Transformer Engine's fused ones."""
    return not assumptions.fused and config.implementation != "te"


def linear(
    rates: Rates,
    name: str,
    role: Role,
    size: Sizes,
    rows: float,
    out: float,
    into: float,
    module: str = "",
    groups: int = 1,
) -> Operation:
    """rows x into -> rows x out. The input, where it is a norm's output, is counted there."""
    z = size.itemsize
    return Operation(
        name,
        role,
        module=module,
        forward=rates.matmul(rows, out, into, z, groups),
        dgrad=rates.matmul(rows, into, out, z, groups),
        wgrad=rates.weight_gradient(rows, out, into, z, groups),
        left=rows * out * z,
    )


def split(layout: Layout, rates: Rates, role: Role) -> Operation:
    """Tensor parallelism around a sub-layer: gather and scatter (or one all-reduce), both ways."""
    config, size = layout.config, sizes(layout.config)
    whole = size.tokens * config.model.hidden_size * size.itemsize
    once = rates.ring(whole, layout.tensor_group)
    return Operation("tensor parallel", role, "tensor parallel", forward=2 * once, dgrad=2 * once)
