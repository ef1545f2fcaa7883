"""What the pipeline's runtime costs: our 1F1B against Megatron's, our DualPipeV and DualPipe against our 1F1B.

    python -m tools.bench_pipeline [--hidden 512] [--rounds 15]

Two ranks on this machine, which share memory, one thread each, 8 micro-batches of one mHC model. The schedules
take turns within one run; a step is the forward_backward_func alone, from the first rank's start to the last one's end.
In every round both ranks also run F, B, I and W of their chunks side by side, with no schedule around them:
from the round's medians the simulator computes what a step should take, with a free link, and so the analytic
ratio of two schedules. Ratios are medians of the rounds', since the machine's own pace drifts. DualPipe's
simulated step also has the time of summing the gradients of its two copies of every stage, as measured.

The second table says where a step's time goes beyond the simulated one: by what its stages took longer, or less, in
that very step than side by side, as a replay with their times has it; and the rest, which is the runtime's. Beside
that the transport's calls and the host between actions, mean over the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

if __name__ == "__main__":
    # Ranks are forked, which CUDA does not survive: hidden before anything asks for a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.checks import check_config
from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.data.feed import MicroBatchTensors
from hcmegatron.measure.bench import together
from hcmegatron.measure.stages import StageClock, done
from hcmegatron.model.execution import Execution
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.pipeline.configured_schedule import placement, training_schedule
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.local_launch import launch_ranks
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training.loss import forward_step
from hcmegatron.training.model import build_model
from megatron.core.process_groups_config import ProcessGroupCollection
from schedules.costs import Costs, StageCosts
from schedules.simulate import simulate
from schedules.timeline import Simulation
from tools.machine import Others, described
from tools.replay import replayed
from tools.targets import Targets, exit_status

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


def _clocked(function: Callable, calls: list[tuple[float, float]]) -> Callable:
    """The function, which notes when it was called and the seconds it took."""

    def clocked(*arguments: object) -> object:
        start = time.monotonic()
        result = function(*arguments)
        calls.append((start, time.monotonic() - start))
        return result

    return clocked


class ScheduledModel:
    """A model of its own under one schedule."""

    def __init__(self, config: Config, groups: ProcessGroupCollection) -> None:
        self.config = config
        self.chunks: list[nn.Module] = list(build_model(config, VOCAB, groups))
        self.schedule: Callable = build_forward_backward(config, self.chunks, groups, Execution())
        self.batch = batch(config.data.sequence_length)
        self.microbatches = config.training.global_batch  # of one sample each
        if isinstance(self.schedule, ScheduleRunner) and device().type == "cuda":
            self.schedule.warm_start(
                forward_step_func=forward_step,
                batches=[repeat(self.batch) for _ in self.chunks],
                num_microbatches=self.microbatches,
                seq_length=config.data.sequence_length,
                micro_batch_size=1,
            )
        # of the last step's sends and of its receives being posted: when each began, and seconds it took
        self.gloo: dict[str, list[tuple[float, float]]] = {"send": [], "receive": []}
        self.mirrored: list[float] = []  # seconds of summing the copies' gradients, of every step
        if isinstance(self.schedule, ScheduleRunner):
            width = config.model.hidden_size * accounting.streams(config.connection)
            shape = config.data.sequence_length, 1, width
            message = partial(torch.randn, shape, device=device(), dtype=DTYPES[config.training.dtype])
            self.clock = StageClock(self.schedule.stages, self.schedule.placement, message)
            for name, calls in self.gloo.items():
                setattr(
                    self.schedule.transport, name, _clocked(getattr(self.schedule.transport, name), calls)
                )
            if self.schedule.replica_sync:
                self.schedule.replica_sync.sum = self._timed(self.schedule.replica_sync.sum)

    def _timed(self, sum_copies: Callable) -> Callable:
        def timed() -> None:
            # The rank that is done first waits here for the other; that is the schedule's time, not the sum's.
            together()
            start = time.monotonic()
            sum_copies()
            done()
            self.mirrored.append(time.monotonic() - start)

        return timed

    def overhead(self) -> list[float]:
        """Of the last step, seconds of this rank before every part of an action and after the last one, in which it
        neither computed, nor waited, nor was inside gloo."""
        record = self.schedule.record
        gaps, ends = record.gaps(), [event.end for event in record.events()]
        for calls in self.gloo.values():
            for start, seconds in calls:
                gaps[bisect(ends, start)] -= seconds
        return gaps

    def spent(self) -> Spent:
        """Of the last step, on this rank."""
        record = self.schedule.record
        events = record.events()
        calls = sum(seconds for own in self.gloo.values() for _, seconds in own)
        taken = [event.end - event.start for event in sorted(events, key=lambda event: event.start)]
        return Spent(taken, calls, sum(record.gaps()) - calls, record.end - record.start)

    def step(self) -> float:
        """Seconds from the first rank's start to the last one's end."""
        for calls in self.gloo.values():
            calls.clear()
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        together()
        start = time.monotonic()
        self.schedule(
            forward_step_func=forward_step,
            data_iterator=[iter([self.batch] * self.microbatches) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=self.microbatches,
            seq_length=self.config.data.sequence_length,
            micro_batch_size=1,
        )
        done()
        ends = torch.tensor([-start, time.monotonic()], dtype=torch.float64, device=device())
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return float(ends.sum())

    def costs(self) -> Costed:
        """Seconds of F, B, I and W of this rank's stages, each named "<kind><stage>". Both ranks call this at
        once."""
        for stage in self.schedule.stages.values():
            stage.begin(forward_step, repeat(self.batch), False, 0, lambda: None)
        together()
        return {name.replace(" ", ""): seconds for name, seconds in self.clock.round().items()}


class Spent(NamedTuple):
    """Seconds of a step on one rank: of its plain actions in order, of the transport's calls, of the host, and in all,
    without summing copies of stages."""

    taken: list[float]
    transport: float
    host: float
    whole: float


class Beyond(NamedTuple):
    """Seconds beyond a simulated step."""

    stages: float
    runtime: float
    transport: float
    host: float


def batch(tokens: int) -> MicroBatchTensors:
    """One micro-batch, the same every time."""
    text = torch.randint(0, VOCAB, (1, tokens + 1), generator=torch.Generator().manual_seed(1)).to(device())
    return {
        "tokens": text[:, :-1],
        "labels": text[:, 1:].contiguous(),
        "loss_mask": torch.ones(1, tokens, device=device()),
        "position_ids": torch.arange(tokens, device=device())[None],
    }


def simulated(config: Config, costs: Costed) -> Simulation:
    """A step with these costs of its stages, in seconds, and a free link."""
    stages = placement(config.parallel).model_stages
    kinds = ({kind: statistics.median(costs[f"{kind}{s}"]) for kind in "FBIW"} for s in range(stages))
    return simulate(
        training_schedule(config, config.training.global_batch),
        Costs(tuple(StageCosts(**k) for k in kinds)),
    )


@dataclass
class Findings:
    """Of all ranks. By schedule and round: seconds a step, of every part, and (on CPU) what every rank spent them on.
    Of all rounds: host seconds an action by schedule (on CPU), seconds of the transport's calls by name, and seconds
    in which the copies of stages are summed."""

    steps: dict[str, list[float]]
    costs: dict[str, list[Costed]]
    spent: dict[str, list[list[Spent]]]
    overhead: dict[str, float]
    gloo: dict[str, float]
    replica_sync: float


def measure(shape: Shape, ranks: RankInfo) -> Findings:
    """Runs on all ranks; complete on each."""
    configs = {schedule: config_for(schedule, shape) for schedule in shape.schedules}
    steps: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[Costed]] = defaultdict(list)
    spent: dict[str, list[list[Spent]]] = defaultdict(list)
    gaps: dict[str, list[list[float]]] = defaultdict(list)
    gloo: dict[str, list[float]] = defaultdict(list)
    with process_groups(configs["1f1b"], ranks) as groups:
        candidates = {name: ScheduledModel(config, groups) for name, config in configs.items()}
        for warm in [True] * 2 + [False] * shape.rounds:
            for name, candidate in candidates.items():
                seconds = candidate.step()
                if not warm:
                    steps[name].append(seconds)
                if name in OURS:
                    overhead = candidate.overhead() if device().type == "cpu" else []
                    own_spent = [candidate.spent()] if device().type == "cpu" else []
                    parts = candidate.costs()
                    if not warm:
                        gaps[name].append(overhead)
                        for call, calls in candidate.gloo.items():
                            gloo[call] += [seconds for _, seconds in calls]
                        costs[name].append(parts)
                        spent[name].append(own_spent)
        own = Findings(
            steps,
            costs,
            spent,
            # Each gap's median: the clock also runs where another process has the core.
            {
                name: sum(map(statistics.median, zip(*gaps[name], strict=True)))
                / len(candidates[name].schedule.record.actions)
                for name in shape.ours
            },
            {call: statistics.median(seconds) for call, seconds in gloo.items()},
            statistics.median(candidates["dualpipe"].mirrored) if "dualpipe" in candidates else 0.0,
        )
        gathered: list[Findings] = [own] * shape.ranks
        dist.all_gather_object(gathered, own)
    first = gathered[0]
    for other in gathered[1:]:
        first.replica_sync = max(first.replica_sync, other.replica_sync)
        for name in shape.ours:
            for own_parts, others in zip(first.costs[name], other.costs[name], strict=True):
                own_parts.update(others)
            for ranks_spent, others_spent in zip(first.spent[name], other.spent[name], strict=True):
                ranks_spent += others_spent
            first.overhead[name] = max(first.overhead[name], other.overhead[name])
        for call, seconds in other.gloo.items():
            first.gloo[call] = max(first.gloo[call], seconds)
    return first


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
            Beyond(
                replay - simulation,
                measured - replay,
                statistics.fmean(one.transport for one in spent),
                statistics.fmean(one.host for one in spent),
            )
            for simulation, spent, measured, replay in zip(simulations, found.spent[name], *own, strict=True)
        ]
        excess[name] = Beyond(*map(statistics.median, zip(*rounds, strict=True)))
    return excess


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
            f"| {name}: host overhead per action | {1e6 * found.overhead[name]:.0f} µs | "
            f"{targets.below(f'{name}: host overhead', 1e6 * found.overhead[name], 50, ' µs')} |"
            for name in OURS
        ),
        f"| sending a message of {kib} KiB | {1e6 * found.gloo['send']:.0f} µs | |",
        f"| posting a receive | {1e6 * found.gloo['receive']:.0f} µs | |",
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


def rank_main(shape: Shape, path: str, ranks: RankInfo) -> int:
    """One rank of the benchmark."""
    found = measure(shape, ranks)
    if ranks.rank == 0:
        with open(path, "w") as file:
            json.dump(report(shape, found), file)
    return 0


def main() -> int:
    """Print the table; returns 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="C")
    parser.add_argument("--layers", type=int, default=8, help="two a chunk, as 30 layers on 8 ranks have")
    parser.add_argument("--tokens", type=int, default=128, help="of a micro-batch")
    parser.add_argument("--rounds", type=int, default=15)
    shape = Shape(**vars(parser.parse_args()))
    others = Others()
    print(described())
    with tempfile.NamedTemporaryFile("r") as file:
        if failed := launch_ranks(partial(rank_main, shape, file.name), RANKS):
            return failed
        table, missed = json.load(file)
    print(table)
    return others.verdict(lambda: exit_status(missed))


if __name__ == "__main__":
    raise SystemExit(main())
