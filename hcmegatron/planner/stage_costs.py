"""Operations as the costs of a schedule: what every stage does, and how long its F, I, W, B and FB take. Seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hcmegatron.config.schedule_names import MEGATRONS
from hcmegatron.config.schema import Recompute
from hcmegatron.connections import accounting
from hcmegatron.planner.layers import has_experts
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.operation import Operation, sizes
from hcmegatron.planner.operations import embedding_and_head, layer_operations
from hcmegatron.planner.rates import Assumptions, Rates
from schedules.costs import Costs, Link, StageCosts, stage_costs
from schedules.node_costs import ROLES, NodeCost


@dataclass(frozen=True)
class OperationGroup:
    """Operations with their sums: a layer, an embedding or a head.

    Attributes:
        phases: seconds of F, I and W, one operation after another.
        seconds: the same by BUSY and all-to-alls.
        kept, left, transient: bytes, see Operation; the largest of what is transient.
    """

    operations: tuple[Operation, ...]

    @cached_property
    def phases(self) -> tuple[float, float, float]:
        ops = self.operations
        return (
            sum(op.forward for op in ops),
            sum(op.dgrad + op.again for op in ops),
            sum(op.wgrad for op in ops),
        )

    @cached_property
    def seconds(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for op in self.operations:
            if op.family == "compute":
                total["forward"] += op.forward
                total["input gradients"] += op.dgrad
            else:
                name = "all-to-alls" if op.family == "all-to-all" else op.family
                total[name] += op.forward + op.dgrad
            total["weight gradients"] += op.wgrad
            total["recomputation"] += op.again
        return total

    @cached_property
    def kept(self) -> float:
        return sum(op.kept for op in self.operations)

    @cached_property
    def left(self) -> float:
        return sum(op.left for op in self.operations)

    @cached_property
    def transient(self) -> float:
        return max((op.transient for op in self.operations), default=0.0)

    @cached_property
    def nodes(self) -> tuple[NodeCost, ...]:
        """A layer as the simulator's nodes; all-to-alls on the communication lane."""
        nodes = []
        for role in ROLES:
            own = OperationGroup(tuple(op for op in self.operations if op.role == role))
            if own.operations:
                lane = "communication" if role in ("dispatch", "combine") else "compute"
                nodes.append(NodeCost(role, lane, *own.phases))
        return tuple(nodes)


class Operations:
    """What every stage does. Layers of one kind are counted once.

    Args:
        known: what layouts share that differ in pipeline or schedule alone.
    """

    def __init__(self, layout: Layout, rates: Rates, known: dict[Any, Any] | None = None) -> None:
        self.layout, self.rates = layout, rates
        self._pieces: dict[str, OperationGroup] = {} if known is None else known.setdefault("pieces", {})
        self._stages: dict[Any, StageOperations] = {} if known is None else known.setdefault("stages", {})

    def of_layer(self, layer: int) -> OperationGroup:
        """One layer's."""
        kind = "experts" if has_experts(self.layout.config, layer) else "dense"
        if kind not in self._pieces:
            self._pieces[kind] = OperationGroup(tuple(layer_operations(self.layout, self.rates, layer)))
        return self._pieces[kind]

    def _end(self, name: str) -> OperationGroup:
        if name not in self._pieces:
            first, last = name == "embedding", name == "head"
            self._pieces[name] = OperationGroup(
                tuple(embedding_and_head(self.layout, self.rates, first, last))
            )
        return self._pieces[name]

    def of_stage(self, stage: int) -> StageOperations:
        """A model stage's; stages with as many layers of each kind are one."""
        kind = self.layout.kind_of(stage)
        if kind not in self._stages:
            held = self.layout.stages[stage]
            pieces = [self.of_layer(layer) for layer in held.layers]
            outside = [
                self._end(name) for name, there in (("embedding", held.first), ("head", held.last)) if there
            ]
            self._stages[kind] = StageOperations(tuple(pieces), tuple(outside))
        return self._stages[kind]

    @cached_property
    def without_recomputation(self) -> Operations:
        """The same model without any."""
        config = replace(self.layout.config, recompute=Recompute())
        return Operations(replace(self.layout, config=config), self.rates)


@dataclass(frozen=True)
class StageOperations:
    """A model stage's layers, first to last, and its embedding and head."""

    layers: tuple[OperationGroup, ...]
    ends: tuple[OperationGroup, ...]

    @cached_property
    def pieces(self) -> tuple[OperationGroup, ...]:
        return (*self.layers, *self.ends)

    @cached_property
    def phases(self) -> tuple[float, float, float]:
        """F, I and W of one micro-batch, one operation after another."""
        F, I, W = zip(*(piece.phases for piece in self.pieces), strict=True)
        return sum(F), sum(I), sum(W)

    @cached_property
    def seconds(self) -> Counter[str]:
        """The same by BUSY and all-to-alls."""
        total: Counter[str] = Counter()
        for piece in self.pieces:
            total.update(piece.seconds)
        return total


def overlaps(layout: Layout, assumed: Assumptions) -> bool:
    """Whether pairs interleave their nodes."""
    config = layout.config
    return assumed.hide and config.parallel.overlap and config.recompute.mode != "full"


def schedule_costs(layout: Layout, operations: Operations) -> Costs:
    """What the simulator needs."""
    config, assumed = layout.config, operations.rates.assumptions
    together = overlaps(layout, assumed)
    moe = any(has_experts(config, layer) for layer in range(config.model.layers))
    size = sizes(config)
    message = accounting.message_bytes(config.connection, config.model.hidden_size, size.itemsize)
    links = {}
    for a in range(config.parallel.pipeline):
        for b in range(config.parallel.pipeline):
            latency, bandwidth = operations.rates.link(layout.same_node(a, b))
            links[a, b] = Link(latency, bandwidth)
    return Costs(
        stages=tuple(_stage(operations, s, together) for s in range(layout.placement.model_stages)),
        links=links,
        hop_bytes=size.local * message // accounting.streams(config.connection),
        streams=accounting.streams(config.connection),
        early=assumed.hide and config.parallel.schedule not in MEGATRONS,
        lead=0.0 if together and moe else 1.0,  # as pipeline.overlap lays pairs out
    )


def _stage(operations: Operations, stage: int, together: bool) -> StageCosts:
    own = operations.of_stage(stage)
    F, I, W = own.phases
    if not together:
        return StageCosts(F=F, I=I, W=W)
    paired = stage_costs([layer.nodes for layer in own.layers], trail=len(own.layers))
    outside = sum(sum(piece.phases) for piece in own.ends)
    B = I + W
    FB = min(F + B, max(paired.FB + outside, F, B))
    return StageCosts(F=F, I=I, W=W, B=B, FB=FB, tail=min(paired.tail, W))
