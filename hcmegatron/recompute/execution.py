"""Executions that compute again in backward what they do not keep (model/execution.py)."""

from __future__ import annotations

from torch import Tensor

from hcmegatron.model.execution import Execution, Layer
from hcmegatron.model.nodes import Lane, MicroBatch, Node, State
from hcmegatron.recompute.block_checkpoint import BlockCheckpoint
from hcmegatron.recompute.block_plan import blocks
from hcmegatron.recompute.meter import Meter
from megatron.core import tensor_parallel


class RecomputedLayers(Execution):
    """recompute.mode = full: every layer is one node that keeps its input alone and runs again in backward."""

    def nodes(self, layer: Layer) -> tuple[Node, ...]:
        return (_checkpointed(layer.nodes),)


class RecomputedBlocks(Execution):
    """recompute.mode = block: micro-batches keep blocks of sub-layers (block_checkpoint.py).

    Args:
        length: sub-layers of a block; a shorter chunk is one block.
        meter: told of every block; None: nothing is measured.
    """

    def __init__(self, length: int, meter: Meter | None = None) -> None:
        self.length, self.meter = length, meter

    def activation_policy(self, sublayers: int) -> BlockCheckpoint:
        return BlockCheckpoint(blocks(sublayers, min(self.length, sublayers)), self.meter)


def _checkpointed(nodes: tuple[Node, ...]) -> Node:
    def run(state: State, micro_batch: MicroBatch) -> State:
        def layer(*state: Tensor) -> State:
            for node in nodes:
                state = node.forward(state, micro_batch)
            return state

        return tensor_parallel.checkpoint(layer, False, *state)

    return Node("layer", Lane.COMPUTE, run)
