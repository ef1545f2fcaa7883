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
that the transport's calls and the host between actions, mean over the ranks. Those calls are timed in every other
round, and what a rank does between actions in the others, so that the clocks are not counted.
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
from functools import partial
from itertools import repeat

import torch
import torch.distributed as dist
from torch import nn

if __name__ == "__main__":
    # Ranks are forked, which CUDA does not survive: hidden before anything asks for a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter first)
from hcmegatron.config.schema import Config
from hcmegatron.connections import accounting
from hcmegatron.data.feed import MicroBatchTensors
from hcmegatron.measure.bench import together
from hcmegatron.measure.stages import StageClock, done
from hcmegatron.model.execution import Execution
from hcmegatron.model.transformer_config import DTYPES
from hcmegatron.pipeline.forward_backward import build_forward_backward
from hcmegatron.pipeline.runner import ScheduleRunner
from hcmegatron.platform.distributed import device, process_groups
from hcmegatron.platform.local_launch import launch_ranks
from hcmegatron.platform.ranks import RankInfo
from hcmegatron.training.loss import forward_step
from hcmegatron.training.model import build_model
from megatron.core.process_groups_config import ProcessGroupCollection
from tools.machine import Others, described
from tools.pipeline_report import (
    OURS,
    RANKS,
    VOCAB,
    Costed,
    Findings,
    Overhead,
    Shape,
    Spent,
    config_for,
    report,
)
from tools.targets import exit_status


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
        # of the last clocked step's sends and of its receives being posted: when each began, and seconds it took
        self.calls: dict[str, list[tuple[float, float]]] = {"send": [], "receive": []}
        self.mirrored: list[float] = []  # seconds of summing the copies' gradients, of every step
        if isinstance(self.schedule, ScheduleRunner):
            width = config.model.hidden_size * accounting.streams(config.connection)
            shape = config.data.sequence_length, 1, width
            message = partial(torch.randn, shape, device=device(), dtype=DTYPES[config.training.dtype])
            self.clock = StageClock(self.schedule.stages, self.schedule.placement, message)
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

    def within_gaps(self) -> list[float]:
        """Of the last step, which was clocked, seconds of this rank in the transport's calls, before every part of an
        action and after the last one."""
        ends = [event.end for event in self.schedule.record.events()]
        found = [0.0] * (len(ends) + 1)
        for calls in self.calls.values():
            for start, seconds in calls:
                found[bisect(ends, start)] += seconds
        return found

    def spent(self, clocked: bool) -> Spent:
        """Of the last step, on this rank."""
        record = self.schedule.record
        taken = [event.end - event.start for event in sorted(record.events(), key=lambda event: event.start)]
        return Spent(
            taken,
            sum(self.within_gaps()) if clocked else None,
            None if clocked else sum(record.gaps()),
            record.end - record.start,
        )

    def _clock_calls(self, clocked: bool) -> None:
        transport = self.schedule.transport
        for name, calls in self.calls.items():
            calls.clear()
            vars(transport).pop(name, None)
            if clocked:
                setattr(transport, name, _clocked(getattr(transport, name), calls))

    def step(self, clocked: bool = False) -> float:
        """Seconds from the first rank's start to the last one's end. ``clocked``: the transport's calls are."""
        if isinstance(self.schedule, ScheduleRunner):
            self._clock_calls(clocked)
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


def batch(tokens: int) -> MicroBatchTensors:
    """One micro-batch, the same every time."""
    text = torch.randint(0, VOCAB, (1, tokens + 1), generator=torch.Generator().manual_seed(1)).to(device())
    return {
        "tokens": text[:, :-1],
        "labels": text[:, 1:].contiguous(),
        "loss_mask": torch.ones(1, tokens, device=device()),
        "position_ids": torch.arange(tokens, device=device())[None],
    }


def measure(shape: Shape, ranks: RankInfo) -> Findings:
    """Runs on all ranks; complete on each."""
    configs = {schedule: config_for(schedule, shape) for schedule in shape.schedules}
    steps: dict[str, list[float]] = defaultdict(list)
    costs: dict[str, list[Costed]] = defaultdict(list)
    spent: dict[str, list[list[Spent]]] = defaultdict(list)
    gaps: dict[str, list[list[float]]] = defaultdict(list)
    within: dict[str, list[list[float]]] = defaultdict(list)
    calls: dict[str, list[float]] = defaultdict(list)
    with process_groups(configs["1f1b"], ranks) as groups:
        candidates = {name: ScheduledModel(config, groups) for name, config in configs.items()}
        for number in range(-2, shape.rounds):
            clocked, warm = number % 2 == 0, number < 0
            for name, candidate in candidates.items():
                seconds = candidate.step(clocked)
                if not warm:
                    steps[name].append(seconds)
                if name in OURS:
                    own_spent = []
                    if device().type == "cpu" and not warm:
                        own_spent = [candidate.spent(clocked)]
                        if clocked:
                            within[name].append(candidate.within_gaps())
                        else:
                            gaps[name].append(candidate.schedule.record.gaps())
                    parts = candidate.costs()
                    if not warm:
                        for call, own_calls in candidate.calls.items():
                            calls[call] += [seconds for _, seconds in own_calls]
                        costs[name].append(parts)
                        spent[name].append(own_spent)
        own = Findings(
            steps,
            costs,
            spent,
            {
                name: _overhead(gaps[name], within[name], len(candidates[name].schedule.record.actions))
                for name in shape.ours
            },
            {call: statistics.median(seconds) for call, seconds in calls.items()},
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
            first.overhead[name] = Overhead(
                *map(max, zip(first.overhead[name], other.overhead[name], strict=True))
            )
        for call, seconds in other.calls.items():
            first.calls[call] = max(first.calls[call], seconds)
    return first


def _overhead(gaps: list[list[float]], calls: list[list[float]], actions: int) -> Overhead:
    """From rounds of gaps, and from others of the transport's calls within them."""
    # each gap's median: the clock also runs where another process has the core
    whole, within = (sum(map(statistics.median, zip(*rounds, strict=True))) for rounds in (gaps, calls))
    return Overhead((whole - within) / actions, whole / actions)


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
    if shape.rounds < 2:
        parser.error(
            f"--rounds {shape.rounds}: every other round is clocked, so there have to be two at least"
        )
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
