"""How long a step takes and where the time goes: the schedule simulated with the operations' costs, then what follows
it. Seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from hcmegatron.config.schema import SPLIT_BACKWARD, splits_backward
from hcmegatron.planner.after_pipeline import after_the_pipeline
from hcmegatron.planner.layout import Layout, schedule
from hcmegatron.planner.measured import Measured
from hcmegatron.planner.stage_costs import Operations, overlaps, schedule_costs
from schedules.costs import Costs
from schedules.simulate import simulate
from schedules.timeline import Simulation

SIMULATED = 3  # times the pipeline ranks: so many micro-batches are simulated, the steady state repeats after
BUSY = ("forward", "input gradients", "weight gradients", "connections", "recomputation", "tensor parallel")
PARTS = (
    *BUSY,
    "backward",  # of measured costs, which do not say more
    "all-to-alls",
    "hops",
    "bubble",
    "gradient reduction",
    "mirrors",
    "parameter gather",
    "optimizer",
)


@dataclass(frozen=True)
class StepTime:
    """Times of a step.

    Attributes:
        simulate: finds `simulation`.
        pipeline: from the first forward to the last weight gradient.
        parts: by rank, PARTS; they sum to `total`.
    """

    simulate: Callable[[], Simulation]
    pipeline: float
    parts: tuple[Counter[str], ...]

    @cached_property
    def simulation(self) -> Simulation:
        """Of as many micro-batches as show the steady state of memory, perhaps fewer than the step has; GPipe's memory
        has none, and all are simulated where that is asked for."""
        return self.simulate()

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


def step_time(layout: Layout, operations: Operations, measured: Measured | None = None) -> StepTime:
    """Simulate a step.

    Args:
        measured: costs in place of the operations'.
    """
    M, P = layout.microbatches, layout.config.parallel.pipeline
    price = (
        measured.costs(layout.config, schedule(layout.config, M))
        if measured
        else schedule_costs(layout, operations)
    )
    # Groups of an interleaved schedule that M does not fill evenly have no steady state.
    uneven = layout.config.parallel.virtual and M % P
    lockstep = not price.early
    steady = not uneven and M > (SIMULATED + 2) * P
    few = SIMULATED * P + M % P if steady else M
    first = simulate(schedule(layout.config, few, lockstep), price)
    after = Counter(measured.after) if measured else after_the_pipeline(layout, operations)

    def assembled(
        simulation: Callable[[], Simulation],
        makespan: float,
        busy: Sequence[float],
        exposed: Sequence[float],
    ) -> StepTime:
        parts = []
        for rank in range(layout.placement.ranks):
            if measured:
                own = _computed(layout, price, rank, busy[rank])
            else:
                own = _operated(layout, operations, rank, busy[rank])
            waited = {"hops": exposed[rank], "bubble": makespan - busy[rank] - exposed[rank]}
            parts.append(Counter({**own, **waited, **after}))
        return StepTime(simulation, makespan, tuple(parts))

    if few == M:
        return assembled(lambda: first, first.makespan, first.busy, first.exposed)
    second = simulate(schedule(layout.config, few + P, lockstep), price)
    times = (M - few) / P

    def further(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
        return tuple(x + times * (y - x) for x, y in zip(a, b, strict=True))

    def simulation() -> Simulation:
        holds_all = layout.config.parallel.schedule == "gpipe"
        return simulate(schedule(layout.config, M, lockstep), price) if holds_all else second

    (makespan,) = further([first.makespan], [second.makespan])
    return assembled(
        simulation, makespan, further(first.busy, second.busy), further(first.exposed, second.exposed)
    )


def _operated(layout: Layout, operations: Operations, rank: int, busy: float) -> Counter[str]:
    """What a rank does in the pipeline, by operation; all-to-alls are what of them nothing hides."""
    where = layout.placement
    own: Counter[str] = Counter()
    for stage in where.stages_of(rank):
        count = len(where.microbatches_of(stage, layout.microbatches))
        for name, seconds in operations.of_stage(where.model_stage(stage)).seconds.items():
            own[name] += count * seconds
    own["all-to-alls"] -= own.total() - busy
    return own


def _computed(layout: Layout, price: Costs, rank: int, busy: float) -> Counter[str]:
    """The same of measured stages, whose pairs are counted as their forward and the rest."""
    where = layout.placement
    forward = sum(
        len(where.microbatches_of(stage, layout.microbatches)) * price.per_stage_id(where)[stage].F
        for stage in where.stages_of(rank)
    )
    return Counter({"forward": forward, "backward": busy - forward})


def lower_bound(layout: Layout, operations: Operations) -> float:
    """Seconds that a step takes at least, without simulating it.

    A rank computes all its micro-batches (all-to-alls hidden where pairs can hide them), not before the first has come
    through the stages before its own; unless weights' gradients are put off, the last gradient then still has to pass
    them: whole backwards, or, where gradients leave first, from the rank's last I on, the first stage's whole. After
    that come reduction and optimizer.
    """
    where = layout.placement
    hides = overlaps(layout, operations.rates.assumptions)
    put_off = layout.config.parallel.schedule in SPLIT_BACKWARD
    leaves_first = splits_backward(layout.config)
    least, before, after, left = [], [0.0], [0.0], []
    for stage in range(where.model_stages):
        own = operations.of_stage(stage)
        least.append(own.seconds.total() - (own.seconds["all-to-alls"] if hides else 0.0))
        forward, dgrad, wgrad = own.phases
        before.append(before[-1] + forward)
        after.append(after[-1] + dgrad + (0.0 if leaves_first and stage else wgrad))
        left.append(wgrad if leaves_first else 0.0)
    pipeline = 0.0
    each = layout.microbatches / len(where.paths)
    for chunks in layout.model_stages:
        busy = each * sum(least[stage] for stage in chunks)
        last = 0.0 if put_off else max(0.0, after[min(chunks)] - left[min(chunks)])
        pipeline = max(pipeline, before[min(chunks)] + busy + last)
    return pipeline + after_the_pipeline(layout, operations).total()
