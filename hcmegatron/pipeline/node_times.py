"""When the nodes of a chunk's layers run: told to whoever listens, and nothing where nobody does.

Overlapped stages run nodes one by one, in forward and backward, on lanes: each is timed as it runs. Plain ones
differentiate a whole chunk at once: there a node's backward begins when the gradient of what it made is taken up, which
a hook on that tensor says, and ends when another one's begins. Nothing of the graph or of a number is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import Tensor
from torch.profiler import record_function

from hcmegatron.model.execution import Execution, Layer
from hcmegatron.model.nodes import ActivationPolicy, Lane, MicroBatch, Node, State
from schedules.runtime.record import Mark


class NodeTime(NamedTuple):
    """One node's phase: F, I or W; B where a whole chunk is differentiated at once, weight gradients within.

    Attributes:
        bytes: of a forward, what it made: for an all-to-all what it brought.
    """

    phase: str
    node: str
    lane: Lane
    start: Mark
    end: Mark
    bytes: int = 0


class NodeTimes:
    """Gathers them, in order of their ends.

    Args:
        mark: the time now, of the lane in use.
    """

    def __init__(self, mark: Callable[[], Mark]) -> None:
        self.mark = mark
        self.entries: list[NodeTime] = []
        self._backward: tuple[object, str, Lane, Mark] | None = None

    @contextmanager
    def timed(self, phase: str, node: str, lane: Lane) -> Iterator[list[int]]:
        """Around a node's phase. Yields a list for the bytes that it made."""
        made: list[int] = []
        start = self.mark()
        with record_function(f"{phase} {node}"):
            yield made
        self.entries.append(NodeTime(phase, node, lane, start, self.mark(), sum(made)))

    def forward(self, node: Node, state: State, micro_batch: MicroBatch) -> State:
        """Runs a node; its backward will be timed too."""
        with self.timed("F", node.name, node.lane) as made:
            after = node.run(state, micro_batch)
            made.append(size_of_new(state, after))
        begins = partial(self._begins, object(), node)
        for tensor in new(state, after):  # what is handed on belongs to the node that made it
            if tensor.requires_grad:
                tensor.register_hook(begins)
        return after

    def end_backward(self) -> None:
        """Of a chunk: nothing more of it is to come."""
        if self._backward is not None:
            _, node, lane, start = self._backward
            self.entries.append(NodeTime("B", node, lane, start, self.mark()))
            self._backward = None

    def _begins(self, run: object, node: Node, _: Tensor) -> None:
        if self._backward is None or self._backward[0] is not run:
            self.end_backward()
            self._backward = run, node.name, node.lane, self.mark()


class TimedNodes(Execution):
    """As another execution, and tells when each node ran."""

    def __init__(self, usual: Execution, times: NodeTimes) -> None:
        self.usual, self.times = usual, times

    def activation_policy(self, sublayers: int) -> ActivationPolicy:
        return self.usual.activation_policy(sublayers)

    def nodes(self, layer: Layer) -> tuple[Node, ...]:
        return tuple(
            Node(node.name, node.lane, partial(self.times.forward, node)) for node in self.usual.nodes(layer)
        )


@contextmanager
def timing(times: NodeTimes | None, phase: str, node: str, lane: Lane) -> Iterator[list[int]]:
    """`times.timed`, where somebody listens."""
    if times is None:
        yield []
    else:
        with times.timed(phase, node, lane) as made:
            yield made


def new(before: State, after: State) -> list[Tensor]:
    """The tensors of a state that were not in it before."""
    there = {id(tensor) for tensor in before}
    return [tensor for tensor in after if id(tensor) not in there]


def size_of_new(before: State, after: State) -> int:
    """Their bytes."""
    return sum(tensor.nbytes for tensor in new(before, after))
