"""A layer is an ordered list of nodes; this is all that the rest of the program knows of a layer.

Plain forward runs a layer's nodes in order, recomputation asks to rebuild a block of them, and the pipeline
interleaves those of two layers (an F and a B) on the lanes that they name.

A layer is two sub-layers, H' = write(H, T(read(H))). What surrounds T, the connection and the norms, is a `SubLayer`,
which can be run again from H and y = T's output alone. Nodes run it through their micro-batch's `ActivationPolicy`,
which so decides what autograd keeps of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

# What flows from node to node: the streams first, then what the sub-layer in progress needs; between two sub-layers the
# `pre` that a single-pass connection has left for the next one, and where kernels fold, the projection that its read
# starts with. Every member is a tensor, so that the autograd graph can be cut between any two nodes.
State = tuple[Tensor, ...]


class Lane(Enum):
    """Where a node runs: a CUDA stream each, one after another on CPU."""

    COMPUTE = "compute"
    COMMUNICATION = "communication"
    HIGH_PRIORITY = "high priority"


class SubLayer(Protocol):
    """The connection and the norms around T: what a layer offers to run again. Streams are [s, b, n, C].

    Neither method communicates between ranks, save that it awaits parameters on their way. Both depend on arguments
    and parameters alone, dropout included.

    Attributes:
        single_pass: `read` takes, and `write` returns, a pre after the streams.
    """

    single_pass: bool

    def read(self, streams: Tensor, *projection: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """T's input [s, b, C], normed, and the coefficients for `write`.

        projection: what the previous sub-layer's `write` returned after the streams, if it did, a `pre` included.
        """

    def write(
        self,
        streams: Tensor,
        y: Tensor,
        coefficients: tuple[Tensor, ...],
        bias: Tensor | None = None,
        first_sample: int | None = None,
    ) -> State:
        """The next streams, then for the next sub-layer's `read` the pre of a single-pass connection, and the
        projection where kernels fold, which carries no gradient. y [s, b, C] and bias [C] are T's output; first_sample
        is the micro-batch's."""


class ActivationPolicy:
    """What autograd keeps of one micro-batch's pass through a chunk: here all that it asks for."""

    def node(self) -> AbstractContextManager:
        """Around a node's forward."""
        return nullcontext()

    def read(
        self, sublayer: SubLayer, streams: Tensor, *projection: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`sublayer.read`; sub-layers come in their order in the chunk."""
        return sublayer.read(streams, *projection)

    def write(
        self,
        sublayer: SubLayer,
        streams: Tensor,
        y: Tensor,
        coefficients: tuple[Tensor, ...],
        bias: Tensor | None = None,
        first_sample: int | None = None,
    ) -> State:
        """`sublayer.write` of the sub-layer entered last."""
        return sublayer.write(streams, y, coefficients, bias, first_sample)


@dataclass(frozen=True)
class MicroBatch:
    """What every layer of a chunk sees of one micro-batch, beside the streams. Nothing in it has a gradient.

    attention_mask: None for causal attention, else boolean [b, 1, s, s], True where a key is hidden.
    rotary: rotary angles [s, 1, 1, d] of GQA; None for MLA, which makes its own.
    activation_policy: belongs to this pass alone; the chunk's execution makes it (execution.py).
    first_sample: number of its first sequence, counted through the whole training run; masks of dropout are a
        function of it. None where nothing is dropped out.
    """

    attention_mask: Tensor | None = None
    rotary: Tensor | None = None
    activation_policy: ActivationPolicy = field(default_factory=ActivationPolicy)
    first_sample: int | None = None


@dataclass(frozen=True)
class Node:
    """One step of a layer: `forward(state, micro_batch) -> state`, on one lane."""

    name: str
    lane: Lane
    run: Callable[[State, MicroBatch], State]

    def forward(self, state: State, micro_batch: MicroBatch) -> State:
        """The state after this node."""
        with micro_batch.activation_policy.node():
            return self.run(state, micro_batch)
