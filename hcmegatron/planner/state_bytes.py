"""Bytes of numbers and of streams, from configuration alone. What a rank holds is in buffers and step_memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.connections.kinds.descriptor import OptimizerRole
from hcmegatron.planner.stages import ModelStage

ITEMSIZE = {"bf16": 2, "fp32": 4, "fp64": 8}  # bytes of a number, by training.dtype


class Bytes(NamedTuple):
    """Of one number of a parameter. A bf16 weight's gradient and master weight are fp32, as the gradient's moments are:
    two of AdamW, one of Muon."""

    weight: int
    gradient: int
    state: int


def of_network(config: Config, role: OptimizerRole = "adamw") -> Bytes:
    """Of everything but connections, by who updates it where optimizer.name is muon."""
    found = {"bf16": Bytes(2, 4, 12), "fp32": Bytes(4, 4, 8), "fp64": Bytes(8, 8, 16)}
    return _by_role(config, found[config.training.dtype], role)


def of_connections(config: Config, role: OptimizerRole = "adamw") -> Bytes:
    """Of connections, which stay in fp32 and are their own master weights."""
    return _by_role(config, Bytes(4, 4, 8), role)


def _by_role(config: Config, adamws: Bytes, role: OptimizerRole) -> Bytes:
    if role == "adamw" or config.optimizer.name == "adamw":
        return adamws
    return adamws._replace(state=adamws.state - adamws.gradient)


def stream_bytes(config: Config, parts: Sequence[ModelStage], live: int) -> int:
    """Stream states that wait for backward: two a layer, with none computed again.

    Args:
        live: (micro-batch, chunk) pairs that the rank holds at most.
    """
    if config.recompute.mode in ("block", "full") or not parts:
        return 0
    width = config.model.hidden_size * accounting.streams(config.connection)
    tokens = config.training.micro_batch * config.data.sequence_length
    if config.parallel.sequence:
        tokens //= config.parallel.tensor
    layers = sum(len(part.layers) for part in parts) / len(parts)
    return round(2 * layers * live * tokens * width * ITEMSIZE[config.training.dtype])
