"""Stages of one's own under DualPipeV on two ranks, against one process. Needs torch alone (gloo, CPU).

    python examples/dualpipev_two_ranks.py

Four stages of mHC sub-layers, whose streams [s, b, n, C] cross the hops: rank 0 has stages 0 and 3, rank 1 stages 1 and
2. Losses and gradients are those of one process, bit for bit.
"""

from __future__ import annotations

import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import hcmegatron as hc
from hcmegatron.schedules import Schedule, generate
from hcmegatron.schedules.runtime import DistributedTransport, Runtime

RANKS, MICROBATCHES, SHAPE, STREAMS, C = 2, 8, (16, 2), 4, 32
CPU, DTYPE = torch.device("cpu"), torch.float64


def data(microbatch: int, which: int) -> Tensor:
    """Inputs (0) or targets (1) of a micro-batch, [s, b, C]."""
    return torch.randn(
        *SHAPE, C, generator=torch.Generator().manual_seed(2 * microbatch + which), dtype=DTYPE
    )


class MLPStage:
    """One stage, as schedules.runtime.Stage asks: forward, and a backward in one piece or in two.

    Args:
        number: of the model's stages, counted from its input.
    """

    def __init__(self, number: int, stages: int) -> None:
        torch.manual_seed(number)
        self.first, self.last = number == 0, number == stages - 1
        mlp = nn.Sequential(nn.RMSNorm(C), nn.Linear(C, 2 * C), nn.SiLU(), nn.Linear(2 * C, C))
        self.module = hc.Connected(
            mlp, hc.connection("mhc", hidden_size=C, streams=STREAMS, index=number)
        ).to(DTYPE)
        self.losses: dict[int, float] = {}
        self.graphs: dict[int, tuple[Tensor, Tensor]] = {}  # by micro-batch: input and output
        self.gradients: dict[int, Tensor | None] = {}  # of the outputs, between I and W

    def forward(self, microbatch: int, input: Tensor | None) -> Tensor | None:
        """F. The first stage takes its own data, the last one keeps its loss."""
        H = hc.expand(data(microbatch, 0), STREAMS) if self.first else input.detach()
        H = H.requires_grad_()
        out = self.module(H)
        if self.last:
            out = (hc.contract(out) - data(microbatch, 1)).square().mean() / MICROBATCHES
            self.losses[microbatch] = float(out.detach())
        self.graphs[microbatch] = H, out
        return None if self.last else out.detach()

    def backward(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """B."""
        H, out = self.graphs.pop(microbatch)
        torch.autograd.backward(out, output_grad)
        return None if self.first else H.grad

    def backward_input(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """I: the graph stays for W."""
        H, out = self.graphs[microbatch]
        self.gradients[microbatch] = output_grad if output_grad is None else output_grad.clone()
        if self.first:
            return None
        return torch.autograd.grad(out, H, output_grad, retain_graph=True)[0]

    def backward_weight(self, microbatch: int) -> None:
        """W."""
        _, out = self.graphs.pop(microbatch)
        torch.autograd.backward(out, self.gradients.pop(microbatch), inputs=list(self.module.parameters()))


def stages_of(schedule: Schedule, rank: int) -> dict[int, MLPStage]:
    """A rank's stages, by their ids."""
    place = schedule.placement
    return {stage: MLPStage(place.model_stage(stage), place.model_stages) for stage in place.stages_of(rank)}


def run_rank(rank: int, folder: str) -> None:
    """One rank's step: what its stages have lost, and their gradients, in a file of the folder."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    schedule = generate("dualpipev", RANKS, MICROBATCHES)
    stages = stages_of(schedule, rank)
    transport = DistributedTransport(dist.group.WORLD, schedule.placement, CPU)
    shape = (*SHAPE, STREAMS, C)
    Runtime(schedule, rank, stages, transport, shape=lambda message: shape, dtype=DTYPE, device=CPU).step()
    torch.save(results(stages), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def results(stages: dict[int, MLPStage]) -> tuple[dict[int, float], dict[int, list]]:
    """Losses by micro-batch, and gradients by stage, as lists of numbers."""
    losses = {m: loss for stage in stages.values() for m, loss in sorted(stage.losses.items())}
    return losses, {id: [p.grad.tolist() for p in stage.module.parameters()] for id, stage in stages.items()}


def one_process() -> tuple[dict[int, float], dict[int, list]]:
    """The same by micro-batches one after another through all stages."""
    stages = {number: MLPStage(number, 2 * RANKS) for number in range(2 * RANKS)}
    for microbatch in range(MICROBATCHES):
        value = None
        for stage in stages.values():
            value = stage.forward(microbatch, value)
        for stage in reversed(stages.values()):
            value = stage.backward(microbatch, value)
    return results(stages)


def main() -> None:
    """Two ranks, one process, and the difference."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (folder,), nprocs=RANKS)  # ends all where one fails, and raises what it has said
        found = [torch.load(f"{folder}/{rank}.pt") for rank in range(RANKS)]
    losses, gradients = one_process()
    of_ranks = found[0][0]
    pipelined = {number: values for _, of_rank in found for number, values in of_rank.items()}
    print(f"loss: {sum(of_ranks.values()):.12f} on two ranks, {sum(losses.values()):.12f} in one process")
    print(f"losses equal: {of_ranks == losses}; gradients equal: {pipelined == gradients}")


if __name__ == "__main__":
    main()
