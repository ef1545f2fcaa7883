"""What every rank holds over a step, by component: what is there all the time, and what the schedule's actions hold.

A chunk keeps its activations from the start of its F to the end of its B; where backward is split, from I on only what
its weight gradients need. A message's buffer is in use from its first byte to its use, and the chunk's own from there
on; the pool keeps as many as were in use at once. What is sent is held until the runtime asks whether it has gone,
which is when as many more as the channel is deep have been sent (schedules/runtime/p2p.py); a CPU's shared memory
holds none of it, and plans have it all the same. Bytes throughout.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import NamedTuple

from hcmegatron.config.schema import distributed_optimizer
from hcmegatron.connections import accounting
from hcmegatron.planner.buffers import resident
from hcmegatron.planner.counts import held_matrices, held_parameters, padded_vocabulary
from hcmegatron.planner.layers import has_experts
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.machines import GIB
from hcmegatron.planner.operation import sizes
from hcmegatron.planner.scheduled import channel_depths, is_megatrons, most_held
from hcmegatron.planner.stage_costs import Operations
from hcmegatron.planner.state_bytes import of_connections, of_network
from hcmegatron.recompute.block_plan import blocks, expected_terms, plan_blocks
from schedules.actions import Kind
from schedules.timeline import Simulation, Transfer

# An allowance, as the machine's for context and communicators: what no count gives. Assumed, and named in every plan.
FRAGMENTATION = 0.05  # of what comes and goes: the caching allocator's blocks that nothing fits into

STATIC = ("weights", "gradients", "optimizer state")
ALLOWANCES = ("context", "communicators", "fragmentation")
MOVING = ("activations", "deferred weight gradients", "receive buffers", "sent messages", "working set")
COMPONENTS = (*STATIC, *MOVING, *ALLOWANCES)


class ChunkMemory(NamedTuple):
    """What one chunk of a rank holds for one micro-batch: kept from F to B, left from I to W; and while F runs, while
    B or I runs, what I leaves of its last layers beyond what they kept when it comes to the first."""

    kept: float
    left: float
    forward: float
    backward: float
    grown: float


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
    around = 0.0  # what a layer keeps beside its operations' own
    match config.recompute.mode:
        case "full":
            around = streams
            kept += around * len(held.layers)
            backward += max(operations.without_recomputation.of_layer(layer).kept for layer in held.layers)
        case "block":
            length = config.recompute.block_length
            terms = expected_terms(config.connection, C, size.itemsize, round(size.local))
            if length.isdigit():  # of the longest stage
                length = str(min(int(length), sublayers))
            chosen = plan_blocks(sublayers, length, terms, live)
            kept += terms.streams * len(blocks(sublayers, chosen.length))
            backward += terms.rebuilt * chosen.length - terms.streams
            around = 2 * terms.streams / chosen.length
    grown = sum(max(0.0, layer.left - layer.kept - around) for layer in own.layers[1:])
    return ChunkMemory(kept, left, forward, backward, grown)


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
    shares = {"experts": layout.expert_data if sharded else 1}
    data = layout.data if sharded else 1
    total, matrices = 0.0, held_matrices(layout, rank)
    for name, count in held.items():
        of_class = of_connections if name == "connections" else of_network
        of_role = (("matrix", matrices[name]), ("adamw", count - matrices[name]))
        for role, numbers in of_role:
            size = of_class(layout.config, role)
            total += numbers * (size.weight + size.gradient + size.state / shares.get(name, data))
    return total


def communicators(layout: Layout) -> int:
    """Groups of several ranks that a rank belongs to."""
    parallel = layout.config.parallel
    groups = (parallel.tensor, parallel.expert, layout.data, layout.expert_data if parallel.expert > 1 else 1)
    stage = layout.gpus // parallel.pipeline if layout.config.optimizer.name == "muon" else 1
    hops = min(2, parallel.pipeline - 1)  # to the rank before and the rank after
    return sum(size > 1 for size in (*groups, stage)) + hops


def allowances(layout: Layout) -> Counter[str]:
    """Bytes of context and communicators on a rank."""
    machine = layout.machine
    each = machine.communicator_gib * GIB
    return Counter({"context": machine.context_gib * GIB, "communicators": each * communicators(layout)})


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
        chunks: live at once, at most.
        between: at most, when an action has ended and before the next begins: activations, what deferred weight
            gradients need, messages sent.
    """

    resident: Counter[str]
    curve: tuple[Moment, ...]
    action: str
    chunks: int
    between: float

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
    rest = sum(allowances(layout).values())
    return max(least_static(layout, rank) for rank in layout.distinct_ranks) + rest


def step_memory(layout: Layout, operations: Operations, simulation: Simulation) -> tuple[RankMemory, ...]:
    """Of every pipeline rank."""
    where = layout.placement
    live = [0] * where.ranks
    if layout.config.recompute.mode == "block" and layout.config.recompute.block_length == "live":
        live = [most_held(layout.config, layout.microbatches, rank).live for rank in range(where.ranks)]
    found, sent = [], _sent(layout, simulation)
    for rank in range(where.ranks):
        chunks = {
            stage: chunk_memory(layout, operations, where.model_stage(stage), max(1, live[rank]))
            for stage in where.stages_of(rank)
        }
        resident = static_memory(layout, rank) + allowances(layout)
        lasting = in_dispatchers(layout, rank)
        found.append(_over_time(simulation, rank, chunks, resident, sent[rank], lasting))
    return tuple(found)


def in_dispatchers(layout: Layout, rank: int) -> float:
    """Of the last micro-batch every dispatcher keeps probabilities, map and order of its tokens until the next."""
    config, moe = layout.config, layout.config.moe
    tokens = sizes(config).tokens / config.parallel.tensor
    mixtures = sum(has_experts(config, layer) for stage in layout.held(rank) for layer in stage.layers)
    return mixtures * tokens * (5 * moe.experts + 8 * moe.top_k)


class _Sent(NamedTuple):
    start: float
    end: float


def _sent(layout: Layout, simulation: Simulation) -> list[list[_Sent]]:
    """How long each rank holds what it sends."""
    depths = None
    if not is_megatrons(layout.config.parallel):  # which drop a message when it has gone
        depths = channel_depths(layout.config, simulation.schedule.microbatches, not simulation.costs.early)
    channels: dict[tuple[int, int], list[Transfer]] = defaultdict(list)
    for transfer in sorted(simulation.transfers, key=lambda transfer: transfer.produced):
        channels[transfer.message.channel].append(transfer)
    found: list[list[_Sent]] = [[] for _ in range(layout.placement.ranks)]
    for channel, transfers in channels.items():
        for number, transfer in enumerate(transfers):
            end = transfer.arrives
            if depths is not None:
                later = number + depths[channel] + 1
                end = transfers[later].produced if later < len(transfers) else simulation.makespan
            found[transfer.message.source_rank].append(_Sent(transfer.produced, end))
    return found


class _Change(NamedTuple):
    time: float
    order: int  # at one time what is freed comes first
    component: int
    size: float
    chunks: int = 0


def _over_time(
    simulation: Simulation,
    rank: int,
    chunks: dict[int, ChunkMemory],
    resident: Counter[str],
    sent: list[_Sent],
    lasting: float,
) -> RankMemory:
    kept, left, buffers, sending, working = range(len(MOVING))
    changes = [_Change(simulation.timeline[rank][0].start, 1, kept, lasting)]
    starts: dict[tuple[Kind, int, int], float] = {}
    ends: dict[tuple[Kind, int, int], float] = {}  # of I and W

    def hold(component: int, size: float, start: float, end: float, order: int = 1) -> None:
        changes.append(_Change(start, order, component, size))
        changes.append(_Change(end, 0, component, -size))

    for timed in simulation.timeline[rank]:
        for part in timed.action.parts:
            own = chunks[part.stage]
            if part.kind is Kind.F:
                starts[Kind.F, part.stage, part.microbatch] = timed.start
                changes.append(_Change(timed.start, 1, kept, own.kept, 1))
                hold(working, own.forward, timed.start, timed.forward_end)
            elif part.kind is Kind.W:
                ends[Kind.W, part.stage, part.microbatch] = timed.end
                changes.append(_Change(timed.end, 0, left, -own.left))
            else:
                starts[Kind.B, part.stage, part.microbatch] = timed.backward_start
                changes.append(_Change(timed.end, 0, kept, -own.kept, -1))
                grown = 0.0
                if part.kind is Kind.I:
                    ends[Kind.I, part.stage, part.microbatch] = timed.end
                    changes.append(_Change(timed.end, 0, left, own.left))
                    grown = own.grown
                hold(working, own.backward + grown, timed.backward_start, timed.end)
    size = simulation.costs.message_bytes
    for transfer in simulation.transfers:
        message = transfer.message
        if message.target_rank == rank:
            used = starts[message.payload, message.target, message.microbatch]
            hold(buffers, size, min(transfer.leaves, used), used)
            place = message.target, message.microbatch
            if (Kind.I, *place) in ends:  # W may read what I was given
                hold(left, size, ends[Kind.I, *place], ends[Kind.W, *place], order=0)
    for message in sent:
        hold(sending, size, message.start, message.end, order=0)  # of the action that ends then
    held, live, most, between = [0.0] * len(MOVING), 0, 0, 0.0
    curve = [Moment(0.0, tuple(held))]
    changes.sort()
    over = {timed.end for timed in simulation.timeline[rank]}
    for change, following in zip_longest(changes, changes[1:]):
        held[change.component] += change.size
        live += change.chunks
        most = max(most, live)
        if (
            change.order == 0
            and change.time in over
            and (following is None or following[:2] > (change.time, 0))
        ):
            between = max(between, held[kept] + held[left] + held[sending])
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
    return RankMemory(resident, tuple(curve), action, most, between)
