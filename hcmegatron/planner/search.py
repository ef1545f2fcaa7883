"""The best layouts of a model on so many GPUs: pipeline, tensor, expert and expert tensor parallelism, schedule,
micro-batch and recomputation.

Branch and bound: what cannot fit whatever its schedule does, and what cannot be quicker than the best ones found, is
left out without simulating it. Both bounds are below what a simulation finds, so the result is that of trying all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, TypeVar

from hcmegatron.config.checks import check_config, check_world
from hcmegatron.config.errors import ConfigError
from hcmegatron.config.schema import Config, Parallel, Recompute, distributed_optimizer
from hcmegatron.connections import accounting
from hcmegatron.planner.layout import Layout
from hcmegatron.planner.machines import Machine, gib
from hcmegatron.planner.plan import Plan
from hcmegatron.planner.rates import Assumptions, Rates
from hcmegatron.planner.stage_costs import Operations
from hcmegatron.planner.step_memory import chunk_memory, least_bytes, least_static, step_memory
from hcmegatron.planner.step_time import lower_bound, step_time

VIRTUAL = (2, 3, 4, 5, 6, 8)  # chunks of an interleaved schedule
MICRO_BATCHES = (1, 2, 4, 8)
# Settings of the best layout, whatever the configuration has there.
CHOSEN = frozenset(
    {
        "parallel.pipeline",
        "parallel.virtual",
        "parallel.tensor",
        "parallel.sequence",
        "parallel.expert",
        "parallel.expert_tensor",
        "parallel.schedule",
        "parallel.overlap",
        "parallel.overlap_grad_reduce",
        "parallel.overlap_param_gather",
        "training.micro_batch",
        "recompute.mode",
        "recompute.modules",
        "recompute.block_length",
    }
)
Outcome = Literal["fits", "memory", "slower"]
DIMENSIONS = ("schedule", "pipeline", "tensor", "expert", "expert tensor", "micro-batch", "recomputation")
T = TypeVar("T")


def unwatched(items: Iterable[T], what: str) -> Iterable[T]:
    """Nobody looks on while the items are gone through."""
    return items


@dataclass(frozen=True)
class Candidate:
    """A layout that was looked at.

    Attributes:
        outcome: fits: simulated; memory: needs more than there is; slower: cannot be among the best.
        seconds: of a step; where it was not simulated, at least.
        peak: bytes of the fullest rank; where it was not simulated, at least, and 0 where nobody asked.
        plan: where it was simulated.
    """

    layout: Layout
    outcome: Outcome
    seconds: float
    peak: float
    plan: Plan | None = None

    def value(self, dimension: str) -> str:
        """Of DIMENSIONS, in words."""
        config = self.layout.config
        match dimension:
            case "schedule":
                chunks = config.parallel.virtual
                return config.parallel.schedule + (f" x{chunks}" if chunks else "")
            case "micro-batch":
                return str(config.training.micro_batch)
            case "recomputation":
                return "+".join([config.recompute.mode, *config.recompute.modules])
        return str(getattr(config.parallel, dimension.replace(" ", "_")))


@dataclass(frozen=True)
class SearchResult:
    """A search's result.

    Attributes:
        best: those that fit, quickest first.
        looked_at: every candidate.
        refused: layouts that configuration or batch refuse, by the first words of why.
    """

    best: tuple[Candidate, ...]
    looked_at: tuple[Candidate, ...]
    refused: Counter[str]

    @property
    def simulated(self) -> int:
        return sum(candidate.plan is not None for candidate in self.looked_at)


def search_layouts(
    config: Config,
    machine: Machine,
    gpus: int,
    assumptions: Assumptions,
    most: int = 10,
    exhaustive: bool = False,
    watch: Callable[[Iterable[Any], str], Iterable[Any]] = unwatched,
) -> SearchResult:
    """The `most` quickest layouts that fit.

    Args:
        exhaustive: simulate everything, bounds or not; what a test compares with.
        watch: gets what is gone through, and in words what is done with it, and gives the same; to show progress.
    """
    refused: Counter[str] = Counter()
    looked_at: list[Candidate] = []
    waiting: list[tuple[float, int, Layout, Operations]] = []
    rates = Rates(machine, assumptions, config.training.dtype)
    shared: dict[tuple, dict[Any, Any]] = {}
    for where in watch(_layouts(config, machine, gpus, refused), "layouts"):
        operations = Operations(where, rates, shared.setdefault(_pieces(where), {}))
        waiting.append((lower_bound(where, operations), len(waiting), where, operations))
    best: list[Candidate] = []
    for bound, _, where, operations in watch(sorted(waiting), "the quickest"):
        if not exhaustive and len(best) >= most and bound >= best[-1].seconds:
            looked_at.append(Candidate(where, "slower", bound, 0.0))
            continue
        least = least_bytes(where)
        if least <= machine.memory:
            least = max(least, least_peak(where, operations))
        if not exhaustive and least > machine.memory:
            looked_at.append(Candidate(where, "memory", bound, least))
            continue
        time = step_time(where, operations)
        plan = Plan(where, assumptions, time, step_memory(where, operations, time.simulation))
        outcome: Outcome = "fits" if plan.fits else "memory"
        candidate = Candidate(where, outcome, plan.seconds, plan.peak, plan)
        looked_at.append(candidate)
        if plan.fits:
            best = sorted([*best, candidate], key=lambda found: found.seconds)[:most]
    return SearchResult(tuple(best), tuple(looked_at), refused)


def _pieces(where: Layout) -> tuple:
    """What a layer's operations depend on, of all that a search changes."""
    parallel, recompute = where.config.parallel, where.config.recompute
    size = where.config.training.micro_batch
    split = parallel.tensor, parallel.expert, parallel.expert_tensor
    return *split, size, recompute.mode, tuple(recompute.modules)


def least_peak(layout: Layout, operations: Operations) -> float:
    """Bytes that the fullest rank holds at least: what is always there, and the activations that wait for backward when
    its last forward before a first backward runs.
    """
    where, M = layout.placement, layout.microbatches
    name = layout.config.parallel.schedule.removeprefix("megatron_")
    most = 0.0
    for rank in layout.distinct_ranks:
        held = [chunk_memory(layout, operations, stage) for stage in set(layout.model_stages[rank])]
        if name == "gpipe":
            live = M
        elif name == "1f1b":
            live = min(where.ranks - rank, M)
        else:
            live = 1
        working = min(own.forward for own in held)
        most = max(most, least_static(layout, rank) + live * min(own.kept for own in held) + working)
    return most


def _layouts(config: Config, machine: Machine, gpus: int, refused: Counter[str]) -> Iterator[Layout]:
    """Every layout that configuration and batch allow, all with the reductions overlapped."""
    for parallel in _parallel(config, machine, gpus):
        shaped = replace(config, parallel=parallel, recompute=Recompute())
        try:
            check_config(replace(shaped, training=replace(config.training, micro_batch=1)))
        except ConfigError as error:
            refused[str(error).partition(" = ")[0]] += 1
            continue
        known: dict[Any, Any] = {}
        for size in MICRO_BATCHES:
            sized = replace(shaped, training=replace(config.training, micro_batch=size))
            try:
                data = check_world(sized, gpus)
            except ConfigError as error:
                refused[str(error).partition(" = ")[0]] += 1
                continue
            microbatches = config.training.global_batch // (size * data)
            for recompute in _recomputation(sized):
                yield Layout(replace(sized, recompute=recompute), machine, gpus, microbatches, known)


def _parallel(config: Config, machine: Machine, gpus: int) -> Iterator[Parallel]:
    layers, experts = config.model.layers, config.moe.experts
    overlap_gather = distributed_optimizer(config)
    for pipeline in _divisors(gpus, layers):
        for tensor in _divisors(gpus // pipeline, machine.gpus_per_node):
            if tensor & (tensor - 1):
                continue
            # each expert on one rank, or split as attention is
            split = dict.fromkeys((1, tensor)) if experts else (1,)
            of_experts = product(_divisors(experts, gpus // pipeline) if experts else (1,), split)
            for expert, expert_tensor in of_experts:
                if (gpus // pipeline) % (expert * expert_tensor):
                    continue
                for schedule, virtual in _schedules(pipeline, layers):
                    yield replace(
                        config.parallel,
                        pipeline=pipeline,
                        virtual=virtual,
                        tensor=tensor,
                        sequence=tensor > 1,
                        expert=expert,
                        expert_tensor=expert_tensor,
                        schedule=schedule,
                        overlap=schedule.startswith("dualpipe"),
                        overlap_grad_reduce=True,
                        overlap_param_gather=overlap_gather,
                    )


def _schedules(pipeline: int, layers: int) -> Iterator[tuple[Any, int | None]]:
    yield "1f1b", None
    if 2 * pipeline <= layers:
        yield "dualpipev", None
    if pipeline == 1:
        return  # nothing to pipeline: the rest comes to the same
    yield "zb_h1", None
    if pipeline % 2 == 0:
        yield "dualpipe", None
    if 2 * pipeline <= layers:
        yield "zb_v", None
    for virtual in VIRTUAL:
        if virtual * pipeline <= layers:
            yield "interleaved", virtual


def _recomputation(config: Config) -> Iterator[Recompute]:
    yield Recompute()
    yield Recompute(mode="full")
    modules: list[list[str]] = [["mla_up_proj"]] if config.model.attention == "mla" else []
    for names in modules:
        yield Recompute(mode="selective", modules=names)
    if accounting.saved_bytes(
        config.connection, config.model.hidden_size, 4
    ):  # something that blocks rebuild
        for names in [[], *modules]:
            yield Recompute(mode="block", modules=names)


def _divisors(number: int, most: int) -> list[int]:
    return [d for d in range(1, min(number, most) + 1) if number % d == 0]


def losers(found: SearchResult) -> list[str]:
    """Why other choices lose to the best, one line for each: the best that each could do, all else free."""
    if not found.best:
        return []
    winner, lines = found.best[0], []
    for dimension in DIMENSIONS:
        groups: dict[str, list[Candidate]] = defaultdict(list)
        for candidate in found.looked_at:
            groups[candidate.value(dimension)].append(candidate)
        del groups[winner.value(dimension)]
        for value in sorted(groups, key=lambda word: (len(word), word)):
            lines.append(f"{dimension} {value}: {_why(winner, groups[value])}")
    return lines


def _why(winner: Candidate, own: list[Candidate]) -> str:
    def slower(seconds: float) -> str:
        return f"{seconds:.3f} s, {seconds / winner.seconds - 1:+.1%}"

    fitting = [c for c in own if c.outcome == "fits"]
    bounded = [c for c in own if c.outcome == "slower"]
    quickest = min(fitting, key=lambda c: c.seconds, default=None)
    least = min(bounded, key=lambda c: c.seconds, default=None)
    if quickest and (least is None or quickest.seconds <= least.seconds):
        return f"{slower(quickest.seconds)}: {_difference(winner, quickest)}"
    if least is not None:
        return f"at least {slower(least.seconds)}, by computation and the pipeline's fill alone"
    lightest = min(own, key=lambda c: c.peak)
    room = lightest.layout.machine.memory
    return f"does not fit: {gib(lightest.peak - room)} GiB too much at the least"


def _difference(winner: Candidate, other: Candidate) -> str:
    """The two parts of the step that grow most."""
    assert winner.plan is not None and other.plan is not None
    a, b = (c.plan.time.parts[c.plan.time.busiest] for c in (winner, other))
    grown = sorted(b.keys() | a.keys(), key=lambda name: a[name] - b[name])[:2]
    return (
        ", ".join(f"{name} {b[name] - a[name]:+.3f} s" for name in grown if b[name] > a[name])
        or "nothing grows"
    )
