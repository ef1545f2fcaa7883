"""One of Megatron's chunks as a stage of a schedule (schedules/runtime/stage.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hcmegatron.model.execution import Execution, running
from hcmegatron.model.gpt import ConnectionGPT
from hcmegatron.model.separate_wgrad import separate_weight_gradients
from hcmegatron.model.wgrad_store import WeightGradStore
from hcmegatron.pipeline.node_times import NodeTimes, TimedNodes
from hcmegatron.platform.distributed import device


class ChunkStage:
    """Forward and backward of one chunk, micro-batch by micro-batch.

    Args:
        chunk: wrapped as for training; it is called through its wrappers.
        model: the chunk inside them.
        execution: how the chunk's nodes are run.
        splits: the schedule has I and W.
    """

    def __init__(
        self, chunk: nn.Module, model: ConnectionGPT, execution: Execution, splits: bool = True
    ) -> None:
        self.chunk, self.model, self.execution = chunk, model, execution
        self._usual = execution
        self._times: NodeTimes | None = None
        self._graphs: dict[int, tuple[Tensor | None, GradientEdge]] = {}
        self._separate(splits)

    def _separate(self, splits: bool) -> None:
        """Have the linears leave their weight gradients for W."""
        self.wgrad_store: WeightGradStore = separate_weight_gradients(self.model, complete=splits)

    def listen(self, times: NodeTimes | None) -> None:
        """From now on `times` gets those of the nodes; None: nobody asks any more. Between steps."""
        self._times = times
        self.execution = TimedNodes(self._usual, times) if times else self._usual

    def begin(
        self,
        forward_step: Callable,
        batches: Iterator[Any],
        forward_only: bool,
        microbatches: int,
        finished: Callable[[], None],
    ) -> None:
        """Prepare for one step.

        Args:
            forward_step: Megatron's forward_step_func.
            batches: micro-batches of this stage in the order in which it sees them.
            microbatches: how many of them.
            finished: called when the last of their weight gradients has been added.
        """
        self._forward_step, self._batches, self._forward_only = forward_step, batches, forward_only
        self._unfinished, self._finished = microbatches, finished
        self._graphs.clear()
        self.losses: list[dict[str, Tensor]] = []
        self.tokens = 0

    def forward(self, microbatch: int, input: Tensor | None) -> Tensor | None:
        """F: [s, b, n*C] in and out; the last stage keeps its loss."""
        return self._forward(microbatch, input, self.execution)

    def _forward(self, microbatch: int, input: Tensor | None, execution: Execution) -> Tensor | None:
        leaf = None
        if input is not None:
            leaf = input.detach().requires_grad_(not self._forward_only)
            self.model.set_input_tensor(leaf)
        output, loss_function = self._forward_step(self._batches, running(self.chunk, execution))
        self.model.set_input_tensor(None)
        if self.model.post_process:
            output, tokens, reduced = loss_function(output)
            self.losses.append(reduced)
            self.tokens += tokens
        if not self._forward_only:
            # the edge keeps the graph without keeping the wide output
            self._graphs[microbatch] = leaf, get_gradient_edge(output)
        return None if self.model.post_process else output

    def backward(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """B: gradients of weights and input."""
        gradient = self._backward(microbatch, output_grad)
        self.weights_done()
        return gradient

    def take_graph(self, microbatch: int) -> tuple[Tensor | None, GradientEdge]:
        """Input and output of the graph that F left behind for B."""
        return self._graphs.pop(microbatch)

    @staticmethod
    def root_gradient(output_grad: Tensor | None) -> Tensor:
        """The gradient to begin with: at the loss, that of the sum with respect to itself."""
        return torch.ones((), device=device()) if output_grad is None else output_grad

    def backward_input(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """I: the same, with the weight gradients of linears, experts and routers left for W."""
        with self.wgrad_store.deferring():
            return self._backward(microbatch, output_grad)

    def backward_weight(self, microbatch: int) -> None:
        """W: of the oldest I."""
        self.wgrad_store.pop_and_run()
        self.weights_done()

    def _backward(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        leaf, edge = self.take_graph(microbatch)
        torch.autograd.backward((edge,), (self.root_gradient(output_grad),))
        if self._times:
            self._times.end_backward()
        return None if leaf is None else leaf.grad

    def weights_done(self) -> None:
        """The weight gradients of one more micro-batch are there; the last one's begin the reduction."""
        self._unfinished -= 1
        if self._unfinished == 0:
            self._finished()
