"""How the nodes of a chunk's layers are run: the one object that says so, handed to the chunk with every micro-batch.

| execution | runs a layer's nodes | where |
|---|---|---|
| `Execution` | one after another; autograd keeps what it asks for | here |
| `RecomputedLayers` | as one node, which keeps its input and runs again in backward | recompute/execution.py |
| `RecomputedBlocks` | one after another; connections and norms are rebuilt block by block | recompute/execution.py |
| `Overlapped` | as one of the others says, between another micro-batch's backward | pipeline/overlap.py |

Training asks recomputation for one (recompute/attach.py) and hands it to the schedule (pipeline/forward_backward.py),
which calls the chunks. Nothing is set on a chunk, a block or a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from hcmegatron.model.nodes import ActivationPolicy, MicroBatch, Node, State


class Layer(Protocol):
    """What an execution knows of a layer."""

    nodes: tuple[Node, ...]

    def __call__(self, state: State, micro_batch: MicroBatch, nodes: Sequence[Node]) -> State:
        """These nodes in order."""


class Execution:
    """Plain: layer after layer, node after node. It holds nothing of a micro-batch; the same one serves all chunks."""

    def activation_policy(self, sublayers: int) -> ActivationPolicy:
        """What decides which tensors one micro-batch keeps for backward, in a chunk of so many sub-layers."""
        return ActivationPolicy()

    def nodes(self, layer: Layer) -> tuple[Node, ...]:
        """What is run of a layer, in order."""
        return layer.nodes

    def run(self, layers: Iterable[Layer], state: State, micro_batch: MicroBatch) -> State:
        """A micro-batch through a chunk's layers: streams [s, b, n, C] and, of single-pass kinds, a pre [s, b, n]."""
        for layer in layers:
            state = layer(state, micro_batch, self.nodes(layer))
        return state


def running(chunk: nn.Module, execution: Execution) -> Callable[..., Tensor]:
    """The chunk, wrapped or not, as a forward_step_func calls it: with this execution."""
    return partial(chunk, execution=execution)
