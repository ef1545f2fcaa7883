"""What the pipeline's runtime costs: our 1F1B against Megatron's, our DualPipeV and DualPipe against our 1F1B.

    python -m tools.bench_pipeline [--hidden 512] [--rounds 15]

Two ranks on this machine, one thread each, 8 micro-batches of one mHC model. The schedules take turns
within one run; a step is the forward_backward_func alone, from the first rank's start to the last one's end.
In every round both ranks also run F, B, I and W of their chunks side by side, with no schedule around them:
from the medians the simulator computes what a step should take, with a free link, and so the analytic ratio
of two schedules.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.checks import check
from hcmegatron.config.schema import Config
from hcmegatron.connections import facts
from hcmegatron.pipeline.loss import MicroBatchTensors, forward_step
from hcmegatron.pipeline.placement import placement, training_schedule
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.pipeline.schedule import build_schedule
from hcmegatron.platform.distributed import process_groups
from hcmegatron.platform.local_launch import launch
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training.model import build_model
from megatron.core.process_groups_config import ProcessGroupCollection
from schedules.costs import Costs, StageCosts
from schedules.runtime.runtime import Runtime
from schedules.simulate import simulate

RANKS = 2
MICRO_BATCHES = 8
SCHEDULES = ("megatron_1f1b", "1f1b", "dualpipev", "dualpipe")
VOCAB = 256
Costed = dict[str, list[float]]


@dataclass(frozen=True)
class Shape:
    """Of the model and its micro-batches."""

    hidden: int
    layers: int
    tokens: int
    rounds: int


def config_for(schedule: str, shape: Shape) -> Config:
    """A dense mHC model, without anything random."""
    config = Config()
    m = config.model
    m.layers, m.hidden_size, m.heads, m.ffn_hidden_size = shape.layers, shape.hidden, 8, 8 * shape.hidden // 3
    config.data.sequence_length, config.training.micro_batch = shape.tokens, 1
    config.training.global_batch, config.training.threads = MICRO_BATCHES, 1
    config.parallel.pipeline, config.parallel.schedule = RANKS, schedule
    check(config)
    return config


class ThreadTime:
    """Processor time of this thread inside some functions: what other processes do in between does not count."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin again."""
        self.seconds, self.calls = 0.0, 0

    def of(self, function: Callable) -> Callable:
        """The function, on the clock."""

        def clocked(*arguments: object) -> object:
            start = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.thread_time() - start
                self.calls += 1

        return clocked


class Candidate:
    """A model of its own under one schedule."""

    def __init__(self, config: Config, groups: ProcessGroupCollection) -> None:
        self.config = config
        self.chunks: list[nn.Module] = list(build_model(config, VOCAB, groups))
        self.schedule: Callable = build_schedule(config, self.chunks, groups)
        self.batch = batch(config.data.sequence_length)
        self.inside = ThreadTime()  # the stages
        self.sending = ThreadTime()  # messages: gloo copies them into its sockets in the caller's thread
        self.total = ThreadTime()
        if isinstance(self.schedule, ScheduleRunner):
            for stage in self.schedule.stages.values():
                for name in ("forward", "backward", "backward_input", "backward_weight"):
                    setattr(stage, name, self.inside.of(getattr(stage, name)))
            self.schedule.transport.send = self.sending.of(self.schedule.transport.send)
            self.schedule._runtime = self._clocked(self.schedule._runtime)

    def _clocked(self, usual: Callable) -> Callable:
        def runtime(*arguments: object) -> Runtime:
            made = usual(*arguments)
            if "step" not in vars(made):
                made.step = self.total.of(made.step)
            return made

        return runtime

    def overhead(self) -> tuple[float, float]:
        """Of the last step, seconds of processor time per action, outside stages and sends, and per message sent."""
        actions, messages = len(self.schedule.record.actions), self.sending.calls
        outside = self.total.seconds - self.inside.seconds - self.sending.seconds
        return outside / actions, self.sending.seconds / messages

    def step(self) -> float:
        """Seconds from the first rank's start to the last one's end."""
        for clock in (self.inside, self.sending, self.total):
            clock.clear()
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        dist.barrier()
        start = time.monotonic()
        self.schedule(
            forward_step_func=forward_step,
            data_iterator=[iter([self.batch] * MICRO_BATCHES) for _ in self.chunks],
            model=self.chunks,
            num_microbatches=MICRO_BATCHES,
            seq_length=self.config.data.sequence_length,
            micro_batch_size=1,
        )
        ends = torch.tensor([-start, time.monotonic()], dtype=torch.float64)
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        return float(ends.sum())

    def costs(self) -> Costed:
        """Seconds of F, B, I and W of this rank's stages, each named "<kind><stage>". Both ranks call this at
        once."""
        assert isinstance(self.schedule, ScheduleRunner)
        width = self.config.model.hidden_size * facts.streams(self.config.connection)
        shape = self.config.data.sequence_length, 1, width
        found: Costed = {}
        dist.barrier()
        for number, stage in self.schedule.stages.items():
            first, last = stage.model.pre_process, stage.model.post_process
            stage.begin(forward_step, iter([self.batch] * 4), False, 4, lambda: None)
            received = None if first else torch.randn(shape)
            gradient = None if last else torch.randn(shape)
            with stage.chunk.no_sync():
                for microbatch, backward in enumerate(("B", "I", "B", "I")):
                    parts: list[tuple[str, Callable[[], Tensor | None]]] = [
                        ("F", partial(stage.forward, microbatch, received)),
                        (
                            backward,
                            partial(
                                stage.backward if backward == "B" else stage.backward_input,
                                microbatch,
                                gradient,
                            ),
                        ),
                    ]
                    if backward == "I":
                        parts.append(("W", partial(stage.backward_weight, microbatch)))
                    for kind, run in parts:
                        start = time.perf_counter()
                        run()
                        found.setdefault(f"{kind}{number}", []).append(time.perf_counter() - start)
        return found


def batch(tokens: int) -> MicroBatchTensors:
    """One micro-batch, the same every time."""
    text = torch.randint(0, VOCAB, (1, tokens + 1), generator=torch.Generator().manual_seed(1))
    return {
        "tokens": text[:, :-1],
        "labels": text[:, 1:].contiguous(),
        "loss_mask": torch.ones(1, tokens),
        "position_ids": torch.arange(tokens)[None],
    }


def simulated(config: Config, costs: Costed) -> float:
    """Seconds of a step with these costs of its stages and a free link."""
    stages = placement(config).model_stages
    kinds = ({kind: statistics.median(costs[f"{kind}{s}"]) for kind in "FBIW"} for s in range(stages))
    return simulate(
        training_schedule(config, MICRO_BATCHES), Costs(tuple(StageCosts(**k) for k in kinds))
    ).makespan


@dataclass
class Findings:
    """Of all rounds: seconds a step, seconds of every part by schedule, and Candidate.overhead."""

    steps: dict[str, list[float]]
    costs: dict[str, Costed]
    overhead: dict[str, list[tuple[float, float]]]


def measure(shape: Shape, ranks: RankInfo) -> Findings:
    """Runs on both ranks; complete on each."""
    configs = {schedule: config_for(schedule, shape) for schedule in SCHEDULES}
    found = Findings(defaultdict(list), {name: defaultdict(list) for name in SCHEDULES}, defaultdict(list))
    with process_groups(configs["1f1b"], ranks) as groups:
        candidates = {name: Candidate(config, groups) for name, config in configs.items()}
        for warm in [True] * 2 + [False] * shape.rounds:
            for name, candidate in candidates.items():
                seconds = candidate.step()
                if not warm:
                    found.steps[name].append(seconds)
                if isinstance(candidate.schedule, ScheduleRunner):
                    overhead, costs = candidate.overhead(), candidate.costs()
                    if not warm:
                        found.overhead[name].append(overhead)
                        for key, values in costs.items():
                            found.costs[name][key] += values
        gathered: list[Findings] = [found] * RANKS
        dist.all_gather_object(gathered, found)
    for other in gathered[1:]:
        for name in SCHEDULES:
            gathered[0].costs[name].update(other.costs[name])
            gathered[0].overhead[name] += other.overhead[name]
    return gathered[0]


def report(shape: Shape, found: Findings) -> str:
    """The table."""
    median = {name: statistics.median(seconds) for name, seconds in found.steps.items()}

    def measured(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(found.steps[over], found.steps[under], strict=True))

    model = {name: simulated(config_for(name, shape), found.costs[name]) for name in SCHEDULES[1:]}
    analytic = {name: model[name] / model["1f1b"] for name in ("dualpipev", "dualpipe")}
    w = sum(statistics.median(found.costs["dualpipev"][f"W{s}"]) for s in range(2 * RANKS))
    b = sum(statistics.median(found.costs["dualpipev"][f"B{s}"]) for s in range(2 * RANKS))
    overhead, sending = (
        max(statistics.median(pair[which] for pair in found.overhead[name]) for name in SCHEDULES[1:])
        for which in (0, 1)
    )
    kib = shape.tokens * 4 * shape.hidden * 4 // 1024
    steps = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in median.items())
    lines = [
        f"Two ranks, {MICRO_BATCHES} micro-batches of {shape.tokens} tokens, mHC with n = 4, C = {shape.hidden}, "
        f"{shape.layers} layers; {shape.rounds} rounds.",
        f"Medians of a step: {steps}. W is {w / b:.0%} of B.",
        "",
        "| | measured | aim |",
        "|---|---|---|",
        f"| our 1F1B / Megatron's 1F1B | {measured('1f1b', 'megatron_1f1b'):.3f} | at most 1.0 |",
        *(
            f"| our {name} / our 1F1B | {measured(name, '1f1b'):.3f} | "
            f"at most {ratio + 0.02:.3f} (analytic ratio {ratio:.3f}) |"
            for name, ratio in analytic.items()
        ),
        *(
            f"| {name}: measured / simulated step | {median[name] / model[name]:.3f} | 0.9 to 1.1 |"
            for name in SCHEDULES[1:]
        ),
        f"| host overhead per action | {1e6 * overhead:.0f} µs | below 100 µs |",
        f"| gloo copying a message of {kib} KiB into its socket | {1e6 * sending:.0f} µs | |",
    ]
    return "\n".join(lines)


def rank_main(shape: Shape, path: str, ranks: RankInfo) -> int:
    """One rank of the benchmark."""
    found = measure(shape, ranks)
    if ranks.rank == 0:
        with open(path, "w") as file:
            file.write(report(shape, found))
    return 0


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512, help="C")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="of a micro-batch")
    parser.add_argument("--rounds", type=int, default=15)
    shape = Shape(**vars(parser.parse_args()))
    with tempfile.NamedTemporaryFile("r") as file:
        status = launch(partial(rank_main, shape, file.name), RANKS)
        print(file.read())
    return status


if __name__ == "__main__":
    raise SystemExit(main())
