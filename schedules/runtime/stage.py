"""What the runtime asks of a stage: the interface that a model is attached by.

A stage is one entry of the placement: for DualPipe each copy is a stage of its own. Calls arrive on the
thread that called ``Runtime.step``, in the order of the schedule; micro-batches are numbered over the whole
step. Only detached tensors cross the interface, in both directions.

Who owns what
- ``input`` and ``output_grad`` may lie in receive buffers. They stay valid and unchanged until the stage's
  ``backward`` or ``backward_weight`` of that micro-batch has returned (``forward``, where the step is
  forward only); then the buffer is used again. The stage makes its own leaf of them
  (``input.detach().requires_grad_()``); whoever wants a value for longer copies it.
- An output belongs to the runtime, which drops it once it has been sent. A stage that keeps
  ``torch.autograd.graph.get_gradient_edge(output)`` for its backward, instead of the output itself, does not
  hold the (wide) output in memory until then.
- On CUDA, work is ordered by the stream that is current when a call begins. A stage that uses other streams
  makes them wait for that stream first, makes that stream wait for them before it returns or sends, and
  calls ``record_stream`` on what crosses between them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor


class Stage(Protocol):
    """Loss and input data stay inside: the first stage of a path gets ``input=None`` and returns no
    gradient; the last one computes the loss in ``forward``, returns None, and gets ``output_grad=None``."""

    def forward(self, microbatch: int, input: Tensor | None) -> Tensor | None:
        """F. The output has the shape that the runtime's ``shape`` gives for the message."""
        ...

    def backward(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """B: accumulates the gradients of the weights, returns that of the input."""
        ...

    def backward_input(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """I: returns the gradient of the input and leaves those of the weights for ``backward_weight``."""
        ...

    def backward_weight(self, microbatch: int) -> None:
        """W: what ``backward_input`` of the micro-batch left behind. Per stage in the order of the I."""
        ...


@runtime_checkable
class OverlappingStage(Stage, Protocol):
    """A stage that can run its forward and another stage's backward at once. Where the forward half's stage
    does not have this method, FB runs F, sends its output, and then runs B."""

    def forward_backward(
        self,
        microbatch: int,
        input: Tensor | None,
        backward_stage: Stage,
        backward_microbatch: int,
        wait_grad: Callable[[], Tensor | None],
        send_output: Callable[[Tensor | None], None],
        send_input_grad: Callable[[Tensor | None], None],
    ) -> None:
        """FB: F of this stage's ``microbatch`` with B of ``backward_stage``'s ``backward_microbatch``.

        Each callable is called exactly once, with None where ``forward`` would return None:
        ``wait_grad`` when B joins (it waits for the gradient: on CUDA the current stream does, on CPU the
        caller), ``send_output`` as soon as F's last node is issued, ``send_input_grad`` likewise for B; they
        send what the current stream has computed by then.
        """
        ...
