"""Operations as the costs of a schedule: what every stage does, and how long its F, I, W, B and FB take. Seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from hcmegatron.config.schema import Recompute
from hcmegatron.connections import facts
from hcmegatron.planner.counts import is_moe
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.operations import Operation, ends, layer_operations, sizes
from hcmegatron.planner.rates import Assumptions, Rates
from schedules.costs import Costs, Link, StageCosts
from schedules.nodes import ROLES, Node, stage_costs


class Operations:
    """Every stage's operations; layers of one kind are counted once."""

    def __init__(self, layout: Layout, rates: Rates) -> None:
        self.layout, self.rates = layout, rates
        self._layers: dict[bool, list[Operation]] = {}
        self._seconds: dict[bool, Counter[str]] = {}
        self._stage_seconds: dict[int, Counter[str]] = {}
        self._phases: dict[int, tuple[float, float, float]] = {}
        self._layer_phases: dict[bool, tuple[float, float, float]] = {}

    def of_layer(self, layer: int) -> list[Operation]:
        """One layer's."""
        kind = is_moe(self.layout.config, layer)
        if kind not in self._layers:
            self._layers[kind] = layer_operations(self.layout, self.rates, layer)
        return self._layers[kind]

    def _seconds_of_layer(self, kind: bool, layer: int) -> Counter[str]:
        if kind not in self._seconds:
            self._seconds[kind] = _seconds(self.of_layer(layer))
        return self._seconds[kind]

    @cached_property
    def without_recomputation(self) -> Operations:
        """The same model without any."""
        config = replace(self.layout.config, recompute=Recompute())
        return Operations(replace(self.layout, config=config), self.rates)

    @cached_property
    def of_stages(self) -> tuple[list[Operation], ...]:
        """Of every model stage, with embedding and head."""
        return tuple(
            [op for layer in stage.layers for op in self.of_layer(layer)]
            + ends(self.layout, self.rates, stage.first, stage.last)
            for stage in self.layout.stages
        )

    def phases(self, stage: int) -> tuple[float, float, float]:
        """Of one micro-batch in a stage, one operation after another: F, I and W."""
        if stage not in self._phases:
            held = self.layout.stages[stage]
            total = list(_serial(ends(self.layout, self.rates, held.first, held.last)))
            for layer in held.layers:
                for i, seconds in enumerate(self._phases_of_layer(layer)):
                    total[i] += seconds
            self._phases[stage] = (total[0], total[1], total[2])
        return self._phases[stage]

    def _phases_of_layer(self, layer: int) -> tuple[float, float, float]:
        kind = is_moe(self.layout.config, layer)
        if kind not in self._layer_phases:
            self._layer_phases[kind] = _serial(self.of_layer(layer))
        return self._layer_phases[kind]

    def seconds(self, stage: int) -> Counter[str]:
        """Of one micro-batch in a stage, one operation after another: BUSY and all-to-alls."""
        if stage not in self._stage_seconds:
            held = self.layout.stages[stage]
            total = _seconds(ends(self.layout, self.rates, held.first, held.last))
            for layer in held.layers:
                total.update(self._seconds_of_layer(is_moe(self.layout.config, layer), layer))
            self._stage_seconds[stage] = total
        return self._stage_seconds[stage]


def _seconds(operations: Sequence[Operation]) -> Counter[str]:
    total: Counter[str] = Counter()
    for op in operations:
        if op.family == "compute":
            total["forward"] += op.forward
            total["input gradients"] += op.dgrad
        else:
            name = "all-to-alls" if op.family == "all-to-all" else op.family
            total[name] += op.forward + op.dgrad
        total["weight gradients"] += op.wgrad
        total["recomputation"] += op.again
    return total


def overlaps(layout: Layout, assumed: Assumptions) -> bool:
    """Whether pairs interleave their nodes."""
    config = layout.config
    return assumed.hide and config.parallel.overlap and config.recompute.mode != "full"


def costs(layout: Layout, operations: Operations) -> Costs:
    """What the simulator needs."""
    config, assumed = layout.config, operations.rates.assumptions
    together = overlaps(layout, assumed)
    moe = any(is_moe(config, layer) for layer in range(config.model.layers))
    size = sizes(config)
    links = {}
    for a in range(config.parallel.pipeline):
        for b in range(config.parallel.pipeline):
            latency, bandwidth = operations.rates.link(layout.same_node(a, b))
            links[a, b] = Link(latency, bandwidth)
    return Costs(
        stages=tuple(_stage(operations, s, together) for s in range(layout.placement.model_stages)),
        links=links,
        hop_bytes=size.local * config.model.hidden_size * size.itemsize,
        streams=facts.streams(config.connection),
        early=assumed.hide and not config.parallel.schedule.startswith("megatron_"),
        lead=0.0 if together and moe else 1.0,  # as pipeline.overlap lays pairs out
    )


def _stage(operations: Operations, stage: int, together: bool) -> StageCosts:
    F, I, W = operations.phases(stage)
    if not together:
        return StageCosts(F=F, I=I, W=W)
    held = operations.layout.stages[stage]
    layers = [_nodes(operations.of_layer(layer)) for layer in held.layers]
    paired = stage_costs(layers, trail=len(layers))
    f, i, w = _serial(ends(operations.layout, operations.rates, held.first, held.last))
    FB = min(F + I + W, max(paired.FB + f + i + w, I + W, F))
    return StageCosts(F=F, I=I, W=W, FB=FB, tail=min(paired.tail, W))


def _serial(operations: Sequence[Operation]) -> tuple[float, float, float]:
    return (
        sum(op.forward for op in operations),
        sum(op.dgrad + op.again for op in operations),
        sum(op.wgrad for op in operations),
    )


def _nodes(operations: Sequence[Operation]) -> tuple[Node, ...]:
    """A layer as the simulator's nodes; all-to-alls on the communication lane."""
    nodes = []
    for role in ROLES:
        own = [op for op in operations if op.role == role]
        if own:
            lane = "communication" if role in ("dispatch", "combine") else "compute"
            nodes.append(Node(role, lane, *_serial(own)))
    return tuple(nodes)
