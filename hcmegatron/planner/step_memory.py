"""What every rank holds over a step, by component: what is there all the time, and what the schedule's actions hold.

A chunk keeps its activations from the start of its F to the end of its B; where backward is split, from I on only what
its weight gradients need. A message's buffer is in use from its first byte to its use; the pool keeps as many
as were in use at once. Bytes throughout.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from hcmegatron.config.schema import distributed_optimizer
from hcmegatron.connections import accounting
from hcmegatron.planner.buffers import resident
from hcmegatron.planner.counts import held_parameters, padded_vocabulary
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.machines import GIB
from hcmegatron.planner.operation import sizes
from hcmegatron.planner.scheduled import most_held
from hcmegatron.planner.stage_costs import Operations
from hcmegatron.planner.state_bytes import of_connections, of_network
from hcmegatron.recompute.block_plan import blocks, expected_terms, plan_blocks
from schedules.actions import Kind
from schedules.timeline import Simulation

# Allowances: what no count gives. Assumed, and named in every plan.
CONTEXT = 0.8 * GIB  # CUDA context, cuBLAS workspaces, kernels' code
COMMUNICATOR = 0.25 * GIB  # NCCL's buffers, for every group of several ranks
FRAGMENTATION = 0.05  # of what comes and goes: the caching allocator's blocks that nothing fits into

STATIC = ("weights", "gradients", "optimizer state")
ALLOWANCES = ("context", "communicators", "fragmentation")
MOVING = ("activations", "deferred weight gradients", "receive buffers", "working set")
COMPONENTS = (*STATIC, *MOVING, *ALLOWANCES)


class ChunkMemory(NamedTuple):
    """What one chunk of a rank holds for one micro-batch: kept from F to B, left from I to W; and while F runs, while
    B or I runs."""

    kept: float
    left: float
    forward: float
    backward: float


def chunk_memory(layout: Layout, operations: Operations, stage: int, live: int = 1) -> ChunkMemory:
    """Of a model stage, with the recomputation that the configuration asks for.

    Args:
        live: micro-batches that wait at once, for recompute.block_length = live.
    """
    config, size = layout.config, sizes(layout.config)
    held, own = layout.stages[stage], operations.of_stage(stage)
    C, n = config.model.hidden_size, accounting.streams(config.connection)
    kept, left = sum(piece.kept for piece in own.pieces), sum(piece.left for piece in own.pieces)
    streams = n * C * size.itemsize * size.local
    working = max(piece.transient for piece in own.pieces)
    forward = streams + working
    # gradients of what an operation holds, beside the streams' own two
    backward = 2 * streams + 2 * working
    sublayers = 2 * len(held.layers)
    match config.recompute.mode:
        case "full":
            kept += streams * len(held.layers)
            backward += max(operations.without_recomputation.of_layer(layer).kept for layer in held.layers)
        case "block":
            length = config.recompute.block_length
            terms = expected_terms(config.connection, C, size.itemsize, round(size.local))
            if length.isdigit():  # of the longest stage
                length = str(min(int(length), sublayers))
            chosen = plan_blocks(sublayers, length, terms, live)
            kept += terms.streams * len(blocks(sublayers, chosen.length))
            backward += terms.rebuilt * chosen.length - terms.streams
    return ChunkMemory(kept, left, forward, backward)


def static_memory(layout: Layout, rank: int) -> Counter[str]:
    """Weights, gradients and optimizer state of a pipeline rank, of the data-parallel one among them that has most."""

    def find() -> Counter[str]:
        held = resident(
            layout.config,
            padded_vocabulary(layout.config),
            layout.held(rank),
            layout.gpus,
            first=rank == 0,
        )
        return Counter(
            {"weights": held.weights, "gradients": held.gradients, "optimizer state": held.most_state}
        )

    return layout.once(("static", rank), find)


def least_static(layout: Layout, rank: int) -> float:
    """Bytes of the same at least: without padding, the state shared out evenly. Dense and expert groups share theirs
    apart.
    """
    held, sharded = held_parameters(layout, rank), distributed_optimizer(layout.config)
    usual, theirs = of_network(layout.config), of_connections()
    shares = {"experts": layout.expert_data if sharded else 1}
    return sum(
        count * (size.weight + size.gradient + size.state / shares.get(name, layout.data if sharded else 1))
        for name, count in held.items()
        for size in (theirs if name == "connections" else usual,)
    )


def communicators(layout: Layout) -> int:
    """Groups of several ranks that a rank belongs to."""
    parallel = layout.config.parallel
    groups = (parallel.tensor, parallel.expert, layout.data, layout.expert_data if parallel.expert > 1 else 1)
    hops = min(2, parallel.pipeline - 1)  # to the rank before and the rank after
    return sum(size > 1 for size in groups) + hops


class Moment(NamedTuple):
    """A rank's bytes from `time` on, by MOVING."""

    time: float
    held: tuple[float, ...]


@dataclass(frozen=True)
class RankMemory:
    """A rank's memory over a step.

    Attributes:
        resident: STATIC, context and communicators.
        curve: what moves.
        action: what runs when most is held, as the schedule writes it.
    """

    resident: Counter[str]
    curve: tuple[Moment, ...]
    action: str
    chunks: int

    @cached_property
    def top(self) -> Moment:
        """When most is held."""
        return max(self.curve, key=lambda moment: sum(moment.held))

    @cached_property
    def peak(self) -> Counter[str]:
        """COMPONENTS when most is held."""
        moving = dict(zip(MOVING, self.top.held, strict=True))
        loose = FRAGMENTATION * sum(self.top.held)
        return Counter({**self.resident, **moving, "fragmentation": loose})


def least_bytes(layout: Layout) -> float:
    """Bytes that the fullest rank holds whatever the schedule does: static and allowances."""
    rest = CONTEXT + COMMUNICATOR * communicators(layout)
    return max(least_static(layout, rank) for rank in layout.distinct_ranks) + rest


def step_memory(layout: Layout, operations: Operations, simulation: Simulation) -> tuple[RankMemory, ...]:
    """Of every pipeline rank."""
    where = layout.placement
    live = [0] * where.ranks
    if layout.config.recompute.mode == "block" and layout.config.recompute.block_length == "live":
        live = [
            most_held(layout.config.parallel, layout.microbatches, rank).live for rank in range(where.ranks)
        ]
    found = []
    for rank in range(where.ranks):
        chunks = {
            stage: chunk_memory(layout, operations, where.model_stage(stage), max(1, live[rank]))
            for stage in where.stages_of(rank)
        }
        resident = static_memory(layout, rank) + Counter(
            {"context": CONTEXT, "communicators": COMMUNICATOR * communicators(layout)}
        )
        found.append(_over_time(simulation, rank, chunks, resident))
    return tuple(found)


class _Change(NamedTuple):
    time: float
    order: int  # at one time what is freed comes first
    component: int
    size: float
    chunks: int = 0


def _over_time(
    simulation: Simulation, rank: int, chunks: dict[int, ChunkMemory], resident: Counter[str]
) -> RankMemory:
    kept, left, buffers, working = range(len(MOVING))
    changes: list[_Change] = []
    starts: dict[tuple[Kind, int, int], float] = {}

    def hold(component: int, size: float, start: float, end: float) -> None:
        changes.append(_Change(start, 1, component, size))
        changes.append(_Change(end, 0, component, -size))

    for timed in simulation.timeline[rank]:
        for part in timed.action.parts:
            own = chunks[part.stage]
            if part.kind is Kind.F:
                starts[Kind.F, part.stage, part.microbatch] = timed.start
                changes.append(_Change(timed.start, 1, kept, own.kept, 1))
                hold(working, own.forward, timed.start, timed.forward_end)
            elif part.kind is Kind.W:
                changes.append(_Change(timed.end, 0, left, -own.left))
            else:
                starts[Kind.B, part.stage, part.microbatch] = timed.backward_start
                changes.append(_Change(timed.end, 0, kept, -own.kept, -1))
                if part.kind is Kind.I:
                    changes.append(_Change(timed.end, 0, left, own.left))
                hold(working, own.backward, timed.backward_start, timed.end)
    size = simulation.costs.message_bytes
    for transfer in simulation.transfers:
        message = transfer.message
        if message.target_rank == rank:
            used = starts[message.payload, message.target, message.microbatch]
            hold(buffers, size, min(transfer.leaves, used), used)
    held, live, most = [0.0] * len(MOVING), 0, 0
    curve = [Moment(0.0, tuple(held))]
    for change in sorted(changes):
        held[change.component] += change.size
        live += change.chunks
        most = max(most, live)
        if change.time == curve[-1].time:
            curve.pop()  # of changes at one time only what they come to is held
        curve.append(Moment(change.time, tuple(held)))
    pool = max(moment.held[buffers] for moment in curve)  # which keeps as many as were in use at once
    curve = [Moment(time, (*held[:buffers], pool, *held[buffers + 1 :])) for time, held in curve]
    top = max(curve, key=lambda moment: sum(moment.held))
    action = next(
        (str(t.action) for t in simulation.timeline[rank] if t.start <= top.time < t.end),
        str(simulation.timeline[rank][-1].action),
    )
    return RankMemory(resident, tuple(curve), action, most)
