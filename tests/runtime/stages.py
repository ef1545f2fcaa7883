"""Small stages of plain torch: a residual block of two linears whose weight gradients can be deferred."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from schedules import Schedule
from schedules.schedule import Message

WIDTH = 6
DTYPE = torch.float64
CPU = torch.device("cpu")


class _Linear(torch.autograd.Function):
    """x @ w; its backward appends to ``store`` what the gradient of w needs, or without a store adds it."""

    @staticmethod
    def forward(ctx, x, weight, stage):
        ctx.save_for_backward(x)
        ctx.weight, ctx.stage = weight, stage
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        if ctx.stage.deferring is None:
            _accumulate(ctx.weight, x, grad)
        else:
            ctx.stage.deferring.append((ctx.weight, x, grad))
        return grad @ ctx.weight.T, None, None


def _accumulate(weight: Tensor, x: Tensor, grad: Tensor) -> None:
    weight.grad = (0 if weight.grad is None else weight.grad) + x.flatten(0, -2).T @ grad.flatten(0, -2)


class BlockStage:
    """Model stage ``number`` of ``stages``. Micro-batch m has ``lengths[m]`` tokens; data and targets follow
    from its number."""

    def __init__(self, number: int, stages: int, lengths: list[int], device: torch.device = CPU) -> None:
        self.number, self.first, self.last = number, number == 0, number == stages - 1
        self.lengths, self.device = lengths, device
        generator = torch.Generator().manual_seed(number)
        self.weights = [
            (torch.randn(WIDTH, WIDTH, generator=generator, dtype=DTYPE) / WIDTH**0.5)
            .to(device)
            .requires_grad_()
            for _ in range(2)
        ]
        self.losses: dict[int, Tensor] = {}
        self.graphs: dict[int, tuple[Tensor, object]] = {}
        self.deferring: list | None = None
        self.pending: deque[tuple[int, list]] = deque()

    def forward(self, microbatch, input):
        assert (input is None) == self.first
        x = self._data(microbatch, 0) if self.first else input.detach().requires_grad_()
        y = x + _Linear.apply(torch.tanh(_Linear.apply(x, self.weights[0], self)), self.weights[1], self)
        if not self.last:
            self.graphs[microbatch] = x, torch.autograd.graph.get_gradient_edge(y)
            return y.detach()
        loss = (y - self._data(microbatch, 1)).square().mean() / len(self.lengths)
        self.losses[microbatch] = loss.detach()  # as a number it would make the host wait for a GPU
        self.graphs[microbatch] = x, torch.autograd.graph.get_gradient_edge(loss)
        return None

    def backward(self, microbatch, output_grad):
        x, edge = self.graphs.pop(microbatch)
        torch.autograd.backward(
            [edge], [torch.ones((), dtype=DTYPE, device=self.device) if self.last else output_grad]
        )
        return x.grad

    def backward_input(self, microbatch, output_grad):
        self.deferring = []
        gradient = self.backward(microbatch, output_grad)
        self.pending.append((microbatch, self.deferring))
        self.deferring = None
        return gradient

    def backward_weight(self, microbatch):
        expected, deferred = self.pending.popleft()
        assert expected == microbatch
        for entry in deferred:
            _accumulate(*entry)

    def _data(self, microbatch: int, which: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + 2 * microbatch + which)
        data = torch.randn(self.lengths[microbatch], WIDTH, generator=generator, dtype=DTYPE)
        return data.to(self.device)


class LateStage(BlockStage):
    """Begins late on the GPU, while the host runs ahead: who does not wait for its results gets something else."""

    def forward(self, microbatch, input):
        torch.cuda._sleep(500_000)  # clock cycles, a fraction of a millisecond
        return super().forward(microbatch, input)

    def backward(self, microbatch, output_grad):
        torch.cuda._sleep(500_000)
        return super().backward(microbatch, output_grad)


def stages_of(
    schedule: Schedule,
    rank: int,
    lengths: list[int],
    device: torch.device = CPU,
    kind: type[BlockStage] = BlockStage,
) -> dict[int, BlockStage]:
    placement = schedule.placement
    return {
        number: kind(placement.model_stage(number), placement.model_stages, lengths, device)
        for number in placement.stages_of(rank)
    }


def shape_for(lengths: list[int]):
    def shape(message: Message) -> tuple[int, ...]:
        return lengths[message.microbatch], WIDTH

    return shape


def gradients(stages: dict[int, BlockStage]) -> list[tuple[int, list[Tensor]]]:
    """(model stage, gradients) of every stage id: copies of one stage appear twice."""
    return [(stage.number, [weight.grad for weight in stage.weights]) for stage in stages.values()]


def losses(stages: dict[int, BlockStage]) -> dict[int, float]:
    return {m: float(loss) for stage in stages.values() for m, loss in stage.losses.items()}


def reference(stages: int, lengths: list[int]) -> tuple[dict[int, float], list[list[Tensor]]]:
    """Losses per micro-batch and gradients per model stage, from one process, one micro-batch at a time."""
    model = [BlockStage(number, stages, lengths) for number in range(stages)]
    for microbatch in range(len(lengths)):
        value = None
        for stage in model:
            value = stage.forward(microbatch, value)
        for stage in reversed(model):
            value = stage.backward(microbatch, value)
    return losses({stages - 1: model[-1]}), [[weight.grad for weight in stage.weights] for stage in model]
