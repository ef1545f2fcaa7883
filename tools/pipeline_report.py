"""What tools.bench_pipeline compares, and what its table says of what was found. Starts nothing."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import NamedTuple

from hcmegatron.config.checks import check_config
from hcmegatron.config.schema import Config
from hcmegatron.planner.scheduled import placement, training_schedule
from schedules.costs import Costs, StageCosts
from schedules.simulate import simulate
from schedules.timeline import Simulation
from tools.replay import replayed
from tools.targets import Targets

RANKS = 2
MICRO_BATCHES = 8
OURS = ("1f1b", "dualpipev", "dualpipe")
SCHEDULES = ("megatron_1f1b", *OURS)
VOCAB = 256
ABOVE = {"dualpipev": 0.005, "dualpipe": 0.01}  # its analytic ratio, at most
Costed = dict[str, list[float]]


@dataclass(frozen=True)
class Shape:
    """Of the model and its micro-batches."""

    hidden: int
    layers: int
    tokens: int
    rounds: int
    ranks: int = RANKS
    dtype: str = "fp32"

    @property
    def microbatches(self) -> int:
        """As many as DualPipe needs."""
        return max(MICRO_BATCHES, 2 * self.ranks)

    @property
    def schedules(self) -> tuple[str, ...]:
        """Those that these ranks can run: DualPipe takes pairs."""
        return tuple(name for name in SCHEDULES if name != "dualpipe" or self.ranks % 2 == 0)

    @property
    def ours(self) -> tuple[str, ...]:
        return tuple(name for name in self.schedules if name in OURS)


def config_for(schedule: str, shape: Shape) -> Config:
    """A dense mHC model, without anything random."""
    config = Config()
    m = config.model
    m.layers, m.hidden_size, m.heads, m.ffn_hidden_size = shape.layers, shape.hidden, 8, 8 * shape.hidden // 3
    config.data.sequence_length, config.training.micro_batch = shape.tokens, 1
    config.training.global_batch, config.training.threads = shape.microbatches, 1
    config.training.dtype = shape.dtype
    config.parallel.pipeline, config.parallel.schedule = shape.ranks, schedule
    check_config(config)
    return config


class Spent(NamedTuple):
    """Seconds of a step on one rank: of its plain actions in order, of the transport's calls (None where these were not
    timed), of all between actions but waits (None where they were, whose clocks would be counted), and in all, without
    summing copies of stages."""

    taken: list[float]
    transport: float | None
    between: float | None
    whole: float


class Overhead(NamedTuple):
    """Seconds an action beside computing and waiting: without the transport's calls, and with them."""

    host: float
    with_calls: float


class Beyond(NamedTuple):
    """Seconds beyond a simulated step."""

    stages: float
    runtime: float
    transport: float
    host: float


@dataclass
class Findings:
    """Of all ranks. By schedule and round: seconds a step, of every part, and (on CPU) what every rank spent them on.
    Of all rounds: the overhead by schedule (on CPU), seconds of the transport's calls by name, and seconds in which the
    copies of stages are summed."""

    steps: dict[str, list[float]]
    costs: dict[str, list[Costed]]
    spent: dict[str, list[list[Spent]]]
    overhead: dict[str, Overhead]
    calls: dict[str, float]
    replica_sync: float


def simulated(config: Config, costs: Costed) -> Simulation:
    """A step with these costs of its stages, in seconds, and a free link."""
    stages = placement(config.parallel).model_stages
    kinds = ({kind: statistics.median(costs[f"{kind}{s}"]) for kind in "FBIW"} for s in range(stages))
    return simulate(
        training_schedule(config, config.training.global_batch),
        Costs(tuple(StageCosts(**k) for k in kinds)),
    )


def expected(shape: Shape, found: Findings) -> dict[str, list[float]]:
    """Seconds of every round's step of our schedules on a link that costs nothing, with its costs."""
    # the sum of the copies comes after the schedule, which knows nothing of gradients
    after = {"dualpipe": found.replica_sync}
    return {
        name: [
            simulated(config_for(name, shape), costs).makespan + after.get(name, 0.0)
            for costs in found.costs[name]
        ]
        for name in shape.ours
    }


class Pipelines(NamedTuple):
    """Of every round, seconds of a pipeline without what follows it: measured, and with the times its stages took."""

    measured: list[float]
    replayed: list[float]


def pipelines(shape: Shape, found: Findings) -> dict[str, Pipelines]:
    """By schedule."""
    own: dict[str, Pipelines] = {}
    for name in shape.ours:
        config = config_for(name, shape)
        schedule = training_schedule(config, config.training.global_batch)
        own[name] = Pipelines(
            [max(one.whole for one in spent) for spent in found.spent[name]],
            [max(replayed(schedule, [one.taken for one in spent])) for spent in found.spent[name]],
        )
    return own


def beyond(shape: Shape, found: Findings) -> dict[str, Beyond]:
    """By schedule, medians over the rounds."""
    excess: dict[str, Beyond] = {}
    for name, own in pipelines(shape, found).items():
        simulations = [simulated(config_for(name, shape), costs).makespan for costs in found.costs[name]]
        rounds = [
            (replay - simulation, measured - replay)
            for simulation, measured, replay in zip(simulations, *own, strict=True)
        ]
        transport = _over_rounds([[one.transport for one in spent] for spent in found.spent[name]])
        between = _over_rounds([[one.between for one in spent] for spent in found.spent[name]])
        stages, runtime = map(statistics.median, zip(*rounds, strict=True))
        excess[name] = Beyond(stages, runtime, transport, between - transport)
    return excess


def _over_rounds(seconds: list[list[float | None]]) -> float:
    """Median over those rounds in which it is known, of the ranks' means."""
    known = [[one for one in ranks if one is not None] for ranks in seconds]
    return statistics.median(statistics.fmean(ranks) for ranks in known if ranks)


def report(shape: Shape, found: Findings) -> tuple[str, list[str]]:
    """The table, and what missed its target."""
    targets = Targets()
    median = {name: statistics.median(seconds) for name, seconds in found.steps.items()}

    def ratio(over: list[float], under: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(over, under, strict=True))

    def measured(over: str, under: str) -> float:
        return ratio(found.steps[over], found.steps[under])

    def parts(kind: str) -> float:
        return sum(
            statistics.median(costs[f"{kind}{s}"])
            for costs in found.costs["dualpipev"]
            for s in range(2 * shape.ranks)
        )

    model = expected(shape, found)
    analytic = {name: ratio(model[name], model["1f1b"]) for name in ("dualpipev", "dualpipe")}
    predicted = {name: ratio(found.steps[name], model[name]) for name in OURS}
    alone = pipelines(shape, found)
    pipeline = {name: ratio(alone[name].measured, alone["1f1b"].measured) for name in analytic}
    replay = {name: ratio(alone[name].replayed, alone["1f1b"].replayed) for name in analytic}

    kib = shape.tokens * 4 * shape.hidden * 4 // 1024
    steps = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in median.items())
    against_megatron = measured("1f1b", "megatron_1f1b")
    against_ours = {name: measured(name, "1f1b") for name in analytic}
    lines = [
        f"Two ranks, {MICRO_BATCHES} micro-batches of {shape.tokens} tokens, mHC with n = 4, C = {shape.hidden}, "
        f"{shape.layers} layers; {shape.rounds} rounds.",
        f"Medians of a step: {steps}. W is {parts('W') / parts('B'):.0%} of B.",
        "",
        "| | measured | target |",
        "|---|---|---|",
        f"| our 1F1B / Megatron's 1F1B | {against_megatron:.3f} | "
        f"{targets.at_most('our 1F1B / Megatron', against_megatron, 0.98)} |",
        *(
            f"| our {name} / our 1F1B | {against_ours[name]:.3f} | "
            f"{targets.at_most(f'our {name} / our 1F1B', against_ours[name], ratio + ABOVE[name])} "
            f"(analytic ratio {ratio:.3f}) |"
            for name, ratio in analytic.items()
        ),
        *(
            f"| pipeline of {name} / of 1F1B | {pipeline[name]:.3f} | "
            f"{targets.at_most(f'pipeline of {name}', pipeline[name], replay[name] + ABOVE[name])} "
            f"(with the times that stages took in it: {replay[name]:.3f}) |"
            for name in analytic
        ),
        *(
            f"| {name}: measured / simulated step | {predicted[name]:.3f} | "
            f"{targets.between(f'{name}: measured / simulated', predicted[name], 0.9, 1.1)} |"
            for name in OURS
        ),
        *(
            f"| {name}: host overhead per action (with the transport's calls) | "
            f"{1e6 * found.overhead[name].host:.0f} µs ({1e6 * found.overhead[name].with_calls:.0f} µs) | "
            f"{targets.below(f'{name}: host overhead', 1e6 * found.overhead[name].host, 50, ' µs')} |"
            for name in OURS
        ),
        f"| sending a message of {kib} KiB | {1e6 * found.calls['send']:.0f} µs | |",
        f"| posting a receive | {1e6 * found.calls['receive']:.0f} µs | |",
        f"| dualpipe: summing the two copies of every stage | {1e3 * found.replica_sync:.0f} ms | |",
        "",
        f"| beyond the simulated step, ms | {' | '.join(Beyond._fields)} |",
        "|---|" + "---|" * len(Beyond._fields),
        *(
            f"| {name} | {' | '.join(f'{1e3 * seconds:.1f}' for seconds in excess)} |"
            for name, excess in beyond(shape, found).items()
        ),
    ]
    return "\n".join(lines), targets.missed
