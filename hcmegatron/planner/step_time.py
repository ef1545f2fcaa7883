"""How long a step takes and where the time goes: operations as the costs of a schedule, simulated; then reduction and
optimizer. Seconds throughout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from hcmegatron.config.schema import Recompute, distributed_optimizer
from hcmegatron.connections import facts
from hcmegatron.planner.counts import is_moe, rank_parameters
from hcmegatron.planner.layout import Group, Layout, schedule
from hcmegatron.planner.operations import ITEMSIZE, Operation, ends, layer_operations, sizes
from hcmegatron.planner.rates import Assumptions, Rates
from schedules.costs import Costs, Link, StageCosts
from schedules.nodes import ROLES, Node, stage_costs
from schedules.simulate import simulate
from schedules.timeline import Simulation

SIMULATED = 4  # times the pipeline ranks: so many micro-batches are simulated, the steady state repeats after
LAST_BUCKET = 0.1  # of a reduction that overlaps with backward: what is left when backward ends, at least
BUSY = ("forward", "input gradients", "weight gradients", "connections", "recomputation", "tensor parallel")
PARTS = (
    *BUSY,
    "all-to-alls",
    "hops",
    "bubble",
    "gradient reduction",
    "mirrors",
    "parameter gather",
    "optimizer",
)


class Operations:
    """Every stage's operations; layers of one kind are counted once."""

    def __init__(self, layout: Layout, rates: Rates) -> None:
        self.layout, self.rates = layout, rates
        self._layers: dict[bool, list[Operation]] = {}

    def of_layer(self, layer: int) -> list[Operation]:
        """One layer's."""
        kind = is_moe(self.layout.config, layer)
        if kind not in self._layers:
            self._layers[kind] = layer_operations(self.layout, self.rates, layer)
        return self._layers[kind]

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

    def seconds(self, stage: int) -> Counter[str]:
        """Of one micro-batch in a stage, one operation after another: BUSY and all-to-alls."""
        total: Counter[str] = Counter()
        for op in self.of_stages[stage]:
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
    F, I, W = _serial(operations.of_stages[stage])
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


@dataclass(frozen=True)
class StepTime:
    """Times of a step.

    Attributes:
        simulation: of as many micro-batches as show the steady state, perhaps fewer than the step has.
        pipeline: from the first forward to the last weight gradient.
        parts: by rank, PARTS; they sum to `total`.
    """

    simulation: Simulation
    pipeline: float
    parts: tuple[Counter[str], ...]

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.parts[0].total()

    @property
    def busiest(self) -> int:
        """The rank that waits least in the pipeline."""
        return min(
            range(len(self.parts)), key=lambda rank: self.parts[rank]["bubble"] + self.parts[rank]["hops"]
        )


def step_time(layout: Layout, operations: Operations) -> StepTime:
    """Simulate a step."""
    M, P = layout.microbatches, layout.config.parallel.pipeline
    price = costs(layout, operations)
    few = M
    if layout.config.parallel.schedule != "gpipe" and M > (SIMULATED + 2) * P:
        few = SIMULATED * P + M % P
    first = simulate(schedule(layout.config, few), price)
    after = _after_the_pipeline(layout, operations)
    if few == M:
        return _assembled(layout, operations, first, first.makespan, first.busy, first.exposed, after)
    second = simulate(schedule(layout.config, few + P), price)
    times = (M - few) / P

    def further(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
        return tuple(x + times * (y - x) for x, y in zip(a, b, strict=True))

    (makespan,) = further([first.makespan], [second.makespan])
    busy, exposed = further(first.busy, second.busy), further(first.exposed, second.exposed)
    return _assembled(layout, operations, second, makespan, busy, exposed, after)


def _assembled(
    layout: Layout,
    operations: Operations,
    simulation: Simulation,
    makespan: float,
    busy: Sequence[float],
    exposed: Sequence[float],
    after: Counter[str],
) -> StepTime:
    where, parts = layout.placement, []
    of_stages = [operations.seconds(stage) for stage in range(where.model_stages)]
    for rank in range(where.ranks):
        own: Counter[str] = Counter()
        for stage in where.stages_of(rank):
            count = len(where.microbatches_of(stage, layout.microbatches))
            for name, seconds in of_stages[where.model_stage(stage)].items():
                own[name] += count * seconds
        hidden = own.total() - busy[rank]
        own["all-to-alls"] -= hidden
        own["hops"] = exposed[rank]
        own["bubble"] = makespan - busy[rank] - exposed[rank]
        parts.append(Counter({**own, **after}))
    return StepTime(simulation, makespan, tuple(parts))


def state_bytes(layout: Layout) -> tuple[float, float, float]:
    """Bytes of (a weight, its gradient, its optimizer state unsharded)."""
    dtype = layout.config.training.dtype
    z = ITEMSIZE[dtype]
    return (2.0, 4.0, 12.0) if dtype == "bf16" else (z, z, 2.0 * z)


def _after_the_pipeline(layout: Layout, operations: Operations) -> Counter[str]:
    """Gradient reduction, sums over DualPipe's copies, parameter gather and optimizer, on the slowest rank."""
    parallel, rates = layout.config.parallel, operations.rates
    weight, gradient, state = state_bytes(layout)
    sharded = distributed_optimizer(layout.config)
    worst: Counter[str] = Counter()
    for rank in range(parallel.pipeline):
        held = rank_parameters(layout.config, layout.held(rank))
        experts = held["experts"]
        dense = held.total() - experts
        own: Counter[str] = Counter()
        groups = ((dense, layout.data_group), (experts, layout.expert_data_group))
        reduced = sum(rates.ring(count * gradient, group) for count, group in groups)
        gathered = sum(
            rates.ring(count * (weight if sharded else gradient), group) for count, group in groups
        )
        one = [
            operations.of_stages[layout.placement.model_stage(s)] for s in layout.placement.stages_of(rank)
        ]
        if parallel.overlap_grad_reduce:
            behind = sum(op.dgrad + op.again + op.wgrad for stage in one for op in stage)
            reduced = max(LAST_BUCKET * reduced, reduced - behind)
        if parallel.overlap_param_gather:
            behind = sum(op.forward for stage in one for op in stage)
            gathered = max(LAST_BUCKET * gathered, gathered - behind)
        own["gradient reduction"] = reduced + (0 if sharded else gathered)
        own["parameter gather"] = gathered if sharded else 0.0
        if len(layout.placement.paths) > 1:
            mirror = parallel.pipeline - 1 - rank
            pair = Group(2, 2 if layout.same_node(rank, mirror) else 1)
            own["mirrors"] = 2 * rates.ring(held.total() * gradient, pair)
        shards = (dense / (layout.data if sharded else 1), experts / (layout.expert_data if sharded else 1))
        # AdamW reads gradient and state and writes state and weight; norm, scaling and clearing pass the gradients
        moved = sum(shards) * (gradient + 2 * state + weight) + 3 * held.total() * gradient
        own["optimizer"] = rates.memory(moved)
        if own.total() > worst.total():
            worst = own
    return worst


def lower_bound(layout: Layout, operations: Operations) -> float:
    """Seconds that a step takes at least, without simulating it: the busiest rank's computation, with all-to-alls
    hidden where pairs can hide them, then reduction and optimizer.
    """
    where = layout.placement
    hides = overlaps(layout, operations.rates.assumptions)
    least = []
    for stage in range(where.model_stages):
        seconds = operations.seconds(stage)
        least.append(seconds.total() - (seconds["all-to-alls"] if hides else 0.0))
    busiest = max(
        sum(
            len(where.microbatches_of(stage, layout.microbatches)) * least[where.model_stage(stage)]
            for stage in where.stages_of(rank)
        )
        for rank in range(where.ranks)
    )
    return busiest + _after_the_pipeline(layout, operations).total()
