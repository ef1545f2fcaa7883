"""DualPipeV beside torch.distributed.pipelining's own: the same stages of plain linears, the same work, one run.

    python -m tools.bench_peers
    python -m tools.bench_peers --rows 512 --width 512 --depth 4 --microbatches 12 --rounds 9

Every rank is a process with one thread and two stages of `--depth` linears, without biases and anything between them.
Both are given the same weights, micro-batches and targets; that their gradients are equal is checked first. Then steps
take turns: torch's, over gloo; ours over gloo and over shared memory, from the first rank's start to the last one's
end. Beside them the time that the step's products take where nothing waits, measured on every rank with all of them
at it, and the ratio of ours to torch's of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import ScheduleDualPipeV

if __name__ == "__main__":
    # No rank needs a GPU, nor makes a context on one.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from hcmegatron.platform.gloo import share_event_loop
from schedules import generate
from schedules.runtime import DistributedTransport, Runtime, SharedMemoryTransport, Transport
from tools.machine import Others, described, spread
from tools.targets import Targets, exit_status

CPU = torch.device("cpu")
TORCH, GLOO, SHARED = "torch's, gloo", "ours, gloo", "ours, shared memory"
PRODUCTS = "products alone"
MOST = 1.0  # of torch's time, that ours takes


@dataclass(frozen=True)
class Case:
    """`depth` linears of `width` a stage, `rows` a micro-batch."""

    ranks: int = 2
    microbatches: int = 8
    rows: int = 512
    width: int = 512
    depth: int = 4

    @property
    def stages(self) -> int:
        return 2 * self.ranks

    def linears(self, stage: int) -> nn.Sequential:
        """A stage, the same wherever it is built."""
        made = nn.Sequential(*(nn.Linear(self.width, self.width, bias=False) for _ in range(self.depth)))
        generator = torch.Generator().manual_seed(stage)
        with torch.no_grad():
            for weight in made.parameters():
                weight.normal_(0.0, self.width**-0.5, generator=generator)
        return made

    def batch(self) -> tuple[Tensor, Tensor]:
        """All micro-batches' inputs and targets, one below the other."""
        generator = torch.Generator().manual_seed(1000)
        shape = 2, self.microbatches * self.rows, self.width
        inputs, targets = torch.randn(shape, generator=generator)
        return inputs, targets


loss_of = nn.functional.mse_loss


class _Linear(torch.autograd.Function):
    """x W^T; in I the gradient of W is left for later."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, stage: LinearsStage) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.stage = weight, stage
        return x @ weight.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.stage.left.append((ctx.weight, dy, x))
        return dy @ ctx.weight if ctx.needs_input_grad[0] else None, None, None


class LinearsStage:
    """Stage `number`, as the runtime drives it."""

    def __init__(self, case: Case, number: int) -> None:
        self.linears = case.linears(number)
        self.case, self.first, self.last = case, number == 0, number == case.stages - 1
        self.inputs, self.targets = (part.split(case.rows) for part in case.batch())
        self.running: dict[int, tuple[Tensor, Tensor]] = {}
        self.left: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self.deferred: dict[int, list[tuple[nn.Parameter, Tensor, Tensor]]] = {}

    def forward(self, microbatch: int, input: Tensor | None) -> Tensor | None:
        """F."""
        x = self.inputs[microbatch] if input is None else input.detach().requires_grad_()
        y = x
        for linear in self.linears:
            y = _Linear.apply(y, linear.weight, self)
        if self.last:
            y = loss_of(y, self.targets[microbatch]) / self.case.microbatches
        self.running[microbatch] = x, y
        return None if self.last else y.detach()

    def backward_input(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """I."""
        x, y = self.running.pop(microbatch)
        y.backward(output_grad)
        self.deferred[microbatch], self.left = self.left, []
        return None if self.first else x.grad

    @torch.no_grad()
    def backward_weight(self, microbatch: int) -> None:
        """W."""
        for weight, dy, x in self.deferred.pop(microbatch):
            product = dy.mT @ x
            weight.grad = product if weight.grad is None else weight.grad.add_(product)

    def backward(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """B."""
        gradient = self.backward_input(microbatch, output_grad)
        self.backward_weight(microbatch)
        return gradient


Gradients = dict[int, list[Tensor]]  # of the weights of this rank's stages


class Ours:
    """A step of this project's runtime."""

    def __init__(self, case: Case, transport: Callable[..., Transport]) -> None:
        schedule, rank = generate("dualpipev", case.ranks, case.microbatches), dist.get_rank()
        where = schedule.placement
        self.stages = {number: LinearsStage(case, number) for number in where.stages_of(rank)}
        self.transport = transport(where)
        shape = case.rows, case.width
        self.runtime = Runtime(
            schedule,
            rank,
            self.stages,
            self.transport,
            shape=lambda _: shape,
            dtype=torch.float32,
            device=CPU,
        )

    def __call__(self) -> None:
        for stage in self.stages.values():
            stage.linears.zero_grad()
        self.runtime.step()

    def gradients(self) -> Gradients:
        """Of the step before."""
        return {number: [w.grad for w in stage.linears.parameters()] for number, stage in self.stages.items()}


class Torch:
    """A step of torch.distributed.pipelining."""

    def __init__(self, case: Case) -> None:
        rank = dist.get_rank()
        own = rank, case.stages - 1 - rank  # a V
        shape = case.rows, case.width

        def stage(number: int) -> PipelineStage:
            """It sends gradients where the examples say that they are wanted."""
            examples = [(torch.empty(shape, requires_grad=wanted),) for wanted in (number > 0, True)]
            return PipelineStage(case.linears(number), number, case.stages, CPU, *examples)

        self.stages = {number: stage(number) for number in own}
        self.schedule = ScheduleDualPipeV(
            list(self.stages.values()),
            case.microbatches,
            loss_fn=lambda y, target: loss_of(y, target) / case.microbatches,
            scale_grads=False,
        )
        self.inputs, self.targets = case.batch()
        self.first = rank == 0  # and last

    def __call__(self) -> None:
        for stage in self.stages.values():
            stage.submod.zero_grad()
        if self.first:
            self.schedule.step(self.inputs, target=self.targets)
        else:
            self.schedule.step()

    def gradients(self) -> Gradients:
        """Of the step before."""
        return {number: [w.grad for w in stage.submod.parameters()] for number, stage in self.stages.items()}


def products(case: Case) -> Callable[[], None]:
    """Those of a step on one rank: of every linear and micro-batch its output and two gradients."""
    x, w = torch.randn(case.rows, case.width), torch.randn(case.width, case.width)

    def run() -> None:
        for _ in range(2 * case.depth * case.microbatches):
            x @ w.mT
            x @ w
            x.mT @ x

    return run


def apart(one: Gradients, other: Gradients) -> float:
    """The largest difference of two gradients, over the largest of them."""
    return max(
        float((a - b).abs().max() / b.abs().max())
        for number, theirs in other.items()
        for a, b in zip(one[number], theirs, strict=True)
    )


def timed(run: Callable[[], None]) -> float:
    """Seconds from the first rank's start to the last one's end."""
    dist.barrier()
    start = time.perf_counter()
    run()
    ends = torch.tensor([-start, time.perf_counter()], dtype=torch.float64)
    dist.all_reduce(ends, dist.ReduceOp.MAX)
    return float(ends.sum())


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round's step, by whose it is. Runs on every rank of the default group.

    Raises:
        RuntimeError: gradients differ by more than the order of their sums explains.
    """
    group = dist.group.WORLD
    theirs = Torch(case)
    ours = {
        GLOO: Ours(case, lambda where: DistributedTransport(group, where, CPU)),
        SHARED: Ours(case, lambda where: SharedMemoryTransport(group, where)),
    }
    theirs()
    for name, one in ours.items():
        one()
        if not (far := apart(one.gradients(), theirs.gradients())) < 1e-4:
            raise RuntimeError(f"{name}: gradients are apart by {far:.1e} from torch's: not the same work")
    runs: dict[str, Callable[[], None]] = {PRODUCTS: products(case), TORCH: theirs, **ours}
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            seconds = timed(run)
            if number:
                found[name].append(seconds)
    ours[SHARED].transport.close()
    return found


def report(found: dict[str, list[float]]) -> list[str]:
    """Prints the table; what missed its target."""
    targets = Targets()
    print(f"{'':22}{'step, ms':>26}{'over torch':>22}  target")
    for name, steps in found.items():
        ratios = [one / other for one, other in zip(steps, found[TORCH], strict=True)]
        aimed = name.startswith("ours")
        target = targets.at_most(name, statistics.median(ratios), MOST) if aimed else ""
        print(f"{name:22}{spread([1e3 * one for one in steps], 1):>26}{spread(ratios, 3):>22}  {target}")
    return targets.missed


def _rank_main(rank: int, store: str, case: Case, rounds: int) -> None:
    torch.set_num_threads(1)
    share_event_loop()
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=case.ranks)
    found = measure(case, rounds)
    if rank == 0:
        Path(f"{store}.missed").write_text(json.dumps(report(found)))
    dist.destroy_process_group()


def main() -> int:
    """Prints the table; returns 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    usual = Case()
    for name, words in {
        "ranks": "of the pipeline, each a process",
        "microbatches": "at least twice the ranks",
        "rows": "of a micro-batch",
        "width": "of the linears",
        "depth": "linears of a stage",
    }.items():
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name), help=words)
    parser.add_argument("--rounds", type=int, default=9)
    asked = vars(parser.parse_args())
    rounds, case = asked.pop("rounds"), Case(**asked)
    others = Others()
    print(f"{described()}\n{case}")
    with tempfile.TemporaryDirectory() as directory:
        store = f"{directory}/store"
        torch.multiprocessing.spawn(_rank_main, (store, case, rounds), nprocs=case.ranks)
        missed = json.loads(Path(f"{store}.missed").read_text())
    return others.verdict(lambda: exit_status(missed))


if __name__ == "__main__":
    raise SystemExit(main())
