"""How much of all-to-alls and hops the overlapped forward and backward hide, without a cluster.

    python -m tools.bench_overlap
    python -m tools.bench_overlap --all-to-all 0.5 --hop 0.5 --schedule dualpipe

Every rank is a process; hops go through gloo on an emulated link. The stages are the trainer's own (FB node by node,
hcmegatron/pipeline/overlap.py) over chunks of MoE layers whose nodes take set times on emulated lanes: like streams of
a GPU, lanes run what they are given in order, beside one another, while the host runs ahead. Attention, experts, and
the input and weight gradients of each take one unit.

Rows: together, and messages as soon as they exist (the trainer); the same with both messages waited for before an FB
and sent after it, as published DualPipe code does (lockstep); F before B, nodes one after another. Exposed is the time
within and between FBs in which nothing computes, as a share of the communication that belongs to them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

if __name__ == "__main__":
    # Ranks are forked, which CUDA does not survive: hidden before anything asks for a GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import hcmegatron.platform.megatron  # noqa: F401  (installs the CPU adapter before Megatron is imported)
from hcmegatron.model.execution import Execution
from hcmegatron.model.nodes import Lane, MicroBatch, Node
from hcmegatron.pipeline.node_times import NodeTimes
from hcmegatron.pipeline.overlap import OverlappedStage, Pairing
from hcmegatron.platform.gloo import share_event_loop
from schedules import generate, node_costs
from schedules.costs import Costs, Link, stage_costs
from schedules.placement import Placement
from schedules.runtime import DistributedTransport, Runtime
from schedules.runtime.link import EmulatedLink, sleep_until
from schedules.simulate import simulate
from tools.machine import Others, described

SHAPE = (2, 1, 4)  # of a message: small, so that what it costs is the emulated link
LANES = {"compute": Lane.COMPUTE, "communication": Lane.COMMUNICATION}


@dataclass(frozen=True)
class OverlapCase:
    """``unit`` in seconds: attention's forward; ``all_to_all`` as a part of it; ``hop`` as a part of a chunk's forward,
    one node after another. ``mode``: together, lockstep or serial."""

    schedule: str = "dualpipev"
    ranks: int = 4
    microbatches: int = 16
    layers: int = 4
    unit: float = 0.01
    all_to_all: float = 1.0
    hop: float = 0.25
    trail: int = 4
    mode: str = "together"

    @property
    def layer(self) -> list[node_costs.NodeCost]:
        """In seconds."""
        u, a = self.unit, self.unit * self.all_to_all
        return [
            node_costs.NodeCost("attention", "compute", u, u, u),
            node_costs.NodeCost("dispatch", "communication", a, a),
            node_costs.NodeCost("experts", "compute", u, u, u),
            node_costs.NodeCost("combine", "communication", a, a),
        ]

    @property
    def hop_seconds(self) -> float:
        return self.hop * self.layers * sum(node.forward for node in self.layer)

    @property
    def pairing(self) -> Pairing:
        return Pairing(0, self.trail if self.mode == "together" else 0)

    def costs(self) -> Costs:
        """For the simulator."""
        layers = [self.layer] * self.layers
        stage = stage_costs(layers, trail=self.pairing.trail)
        if self.mode == "serial":
            forward = sum(node.forward for layer in layers for node in layer)
            backward = sum(node.dgrad + node.wgrad for layer in layers for node in layer)
            stage = replace(stage, F=forward, B=backward, FB=forward + backward, tail=0.0, layers=())
        return Costs(
            (stage,),
            Link(latency=self.hop_seconds),
            early=self.mode != "lockstep",
            lead=1.0 if self.mode == "serial" else 0.0,
        )


class EmulatedLanes:
    """Lanes that are busy until a time on the monotonic clock (hcmegatron/pipeline/lanes.py: Lanes).

    Attributes:
        computed: intervals in which the compute lane was busy.
        communicated: seconds of all-to-alls so far.
        times: as of Lanes.
    """

    def __init__(self, one: bool) -> None:
        self.one = one  # one lane for everything
        self.free = dict.fromkeys(Lane, 0.0)
        self.lane = Lane.COMPUTE
        self.computed: list[tuple[float, float]] = []
        self.communicated = 0.0
        self.times: NodeTimes | None = None

    @contextmanager
    def on(self, lane: Lane, chain: Any, needs: Any = ()) -> Iterator[None]:
        outer, self.lane = self.lane, Lane.COMPUTE if self.one else lane
        self.free[self.lane] = max(self.free[self.lane], chain.done or 0.0, time.monotonic())
        yield
        chain.lane, chain.done = self.lane, self.free[self.lane]
        self.lane = outer

    def take(self, seconds: float, lane: Lane = Lane.COMPUTE) -> None:
        """Keep the current lane busy. `lane` says what with."""
        start = max(self.free[self.lane], time.monotonic())
        self.free[self.lane] = start + seconds
        if lane is Lane.COMPUTE:
            self.computed.append((start, start + seconds))
        else:
            self.communicated += seconds

    def ready(self) -> float:
        """When all that the current lane was given is done."""
        return max(self.free[self.lane], time.monotonic())

    def end(self) -> float:
        """When all lanes are done."""
        return max(self.free.values())


class _Take(torch.autograd.Function):
    """A node that passes its input on."""

    @staticmethod
    def forward(ctx: Any, streams: Tensor, weight: Tensor, node: node_costs.NodeCost, rank: Rank) -> Tensor:
        ctx.node, ctx.rank, ctx.weight = node, rank, weight
        rank.lanes.take(node.forward, LANES[node.lane])
        return streams.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        node, rank, weight = ctx.node, ctx.rank, ctx.weight
        rank.lanes.take(node.dgrad, LANES[node.lane])
        if node.wgrad:

            def left(_: Tensor | None = None) -> Tensor:
                rank.lanes.take(node.wgrad)
                return torch.zeros_like(weight)

            store = rank.store
            if store is None or store.open is None:
                left()
            else:
                store.open.add(weight, left)
        return gradient, None, None, None


@dataclass
class Rank:
    """What the nodes of one stage share."""

    lanes: EmulatedLanes
    store: Any = None


class TimedChunk(nn.Module):
    """A chunk of layers whose nodes take set times; as much of ConnectionGPT as a stage uses."""

    def __init__(self, setting: OverlapCase, rank: Rank, first: bool, last: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.first, self.post_process = first, last
        layers = [
            SimpleNamespace(nodes=tuple(self._node(node, rank) for node in setting.layer))
            for _ in range(setting.layers)
        ]
        self.decoder = SimpleNamespace(layers=layers)
        self.input: Tensor | None = None

    def _node(self, node: node_costs.NodeCost, rank: Rank) -> Node:
        def run(state: tuple[Tensor], _: MicroBatch) -> tuple[Tensor]:
            return (_Take.apply(state[0], self.weight, node, rank),)

        return Node(node.role, LANES[node.lane], run)

    def set_input_tensor(self, tensor: Tensor | None) -> None:
        self.input = tensor

    def forward(self, execution: Execution) -> Tensor:
        start = torch.zeros(SHAPE, requires_grad=True) if self.first else self.input
        (end,) = execution.run(self.decoder.layers, (start,), MicroBatch())
        return end


def forward_step(batches: Any, chunk: Callable[[], Tensor]) -> tuple[Tensor, Any]:
    return chunk(), lambda output: (output.sum(), 1, {})


class MeasuredStage(OverlappedStage):
    """Measures what its FBs expose.

    Attributes:
        exposed, communication: seconds, over all FBs.
    """

    def __init__(self, setting: OverlapCase, rank: Rank, first: bool, last: bool) -> None:
        chunk = TimedChunk(setting, rank, first, last)
        super().__init__(rank.lanes, chunk, chunk, Execution(), lambda *_: setting.pairing)
        rank.store = self.wgrad_store
        self.setting, self.ends = setting, first + last
        self.exposed = self.communication = 0.0
        self.begin(forward_step, iter(()), False, setting.microbatches, lambda: None)

    def forward_backward(
        self,
        microbatch: int,
        input: Any,
        back: Any,
        back_microbatch: int,
        wait_grad: Any,
        send: Any,
        send_grad: Any,
    ) -> None:
        lanes, setting, hop = self.lanes, self.setting, self.setting.hop_seconds
        before, communicated, count = lanes.end(), lanes.communicated, len(lanes.computed)
        # What is waited for beyond a hop is the pipeline's bubble.
        entered = time.monotonic()
        bubble = max(0.0, entered - before - hop)

        def wait() -> Tensor | None:
            nonlocal bubble
            free = max(lanes.end(), entered)
            gradient = wait_grad()
            bubble += max(0.0, time.monotonic() - free - hop)
            return gradient

        arguments = microbatch, input, back, back_microbatch
        if setting.mode == "lockstep":
            gradient, results = wait(), {}
            super().forward_backward(
                *arguments,
                lambda: gradient,
                lambda output: results.update(F=output),
                lambda gradient: results.update(B=gradient),
            )
            send(results["F"])
            send_grad(results["B"])
        elif setting.mode == "serial":
            send(self.forward(microbatch, input))
            send_grad(back.backward(back_microbatch, wait()))
        else:
            super().forward_backward(*arguments, wait, send, send_grad)
        hops = 2 - self.ends  # an F from and a gradient to the one side, unless that is where the path ends
        computing = sum(end - start for start, end in lanes.computed[count:])
        self.exposed += lanes.end() - before - computing - bubble
        self.communication += lanes.communicated - communicated + hops * hop


def measure(settings: list[OverlapCase]) -> list[tuple[float, float]]:
    """(seconds of a step, share of the FBs' communication that is exposed), per setting. On every rank of the default
    group, with the same answer."""
    return [_measure(setting) for setting in settings]


def _measure(setting: OverlapCase) -> tuple[float, float]:
    group, cpu = dist.group.WORLD, torch.device("cpu")
    schedule = generate(setting.schedule, group.size(), setting.microbatches)
    where: Placement = schedule.placement
    lanes = EmulatedLanes(one=setting.mode == "serial")
    stages = {
        stage: MeasuredStage(setting, Rank(lanes), where.previous(stage) is None, where.next(stage) is None)
        for stage in where.stages_of(group.rank())
    }
    runtime = Runtime(
        schedule,
        group.rank(),
        stages,
        DistributedTransport(group, where, cpu, EmulatedLink(Link(latency=setting.hop_seconds), lanes.ready)),
        shape=lambda message: SHAPE,
        dtype=torch.float32,
        device=cpu,
    )
    dist.barrier()
    record = runtime.step()
    sleep_until(lanes.end())
    ends = torch.tensor([-record.start, lanes.end()], dtype=torch.float64)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    shares = torch.tensor(
        [sum(stage.exposed for stage in stages.values()), sum(s.communication for s in stages.values())],
        dtype=torch.float64,
    )
    dist.all_reduce(shares)
    return float(ends.sum()), float(shares[0] / shares[1])


def predicted(setting: OverlapCase) -> float:
    """The simulator's seconds."""
    schedule = generate(setting.schedule, setting.ranks, setting.microbatches)
    return simulate(schedule, setting.costs()).makespan


def modes(setting: OverlapCase) -> list[OverlapCase]:
    return [replace(setting, mode=mode) for mode in ("together", "lockstep", "serial")]


def _rank_main(rank: int, store: str, settings: list[OverlapCase]) -> None:
    torch.set_num_threads(1)
    share_event_loop()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=settings[0].ranks)
    measured = measure(settings)
    if rank == 0:
        _print_table(settings, measured)
    dist.destroy_process_group()


def _print_table(settings: list[OverlapCase], measured: list[tuple[float, float]]) -> None:
    first = settings[0]
    print(
        f"{first.schedule}, {first.ranks} ranks, {first.microbatches} micro-batches, chunks of {first.layers} MoE "
        f"layers; an all-to-all costs {first.all_to_all} attention, a hop {first.hop} F"
    )
    print(f"{'':34}{'step':>9}{'simulated':>12}{'exposed':>10}")
    names = {
        "together": "node by node, sent at once",
        "lockstep": "node by node, in lockstep",
        "serial": "F before B, nothing overlapped",
    }
    for setting, (seconds, exposed) in zip(settings, measured, strict=True):
        print(f"{names[setting.mode]:34}{seconds:7.3f} s{predicted(setting):10.3f} s{exposed:10.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = OverlapCase()
    parser.add_argument("--schedule", choices=["dualpipe", "dualpipev"], default=default.schedule)
    for name in ("ranks", "microbatches", "layers", "trail"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    for name in ("unit", "all-to-all", "hop"):
        parser.add_argument(f"--{name}", type=float, default=getattr(default, name.replace("-", "_")))
    case = parser.parse_args()
    others = Others()
    print(described())
    settings = modes(OverlapCase(**vars(case)))
    generate(settings[0].schedule, settings[0].ranks, settings[0].microbatches)  # refuses impossible sizes
    with tempfile.TemporaryDirectory() as directory:
        torch.set_num_threads(1)  # a fork of a process that has used torch's threads would hang
        torch.multiprocessing.start_processes(
            _rank_main, (f"{directory}/store", settings), nprocs=settings[0].ranks, start_method="fork"
        )
    print(others)


if __name__ == "__main__":
    main()
