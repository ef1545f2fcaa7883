"""A micro-batch's autograd graph through a chunk, in segments: one a node, so that its backward can run node by node
beside another micro-batch's forward.

At the boundary between two segments gradients go into the hands of the program, and from there into the node before. A
boundary adds gradients in the order in which one backward through the whole graph would, so results are equal bit for
bit, and it holds no tensor: what a node keeps for its backward is what autograd saves, or recomputation lets it save.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from hcmegatron.model.nodes import Lane, MicroBatch, Node, State
from hcmegatron.model.wgrad_store import DeferredWgrads, WeightGradStore
from hcmegatron.pipeline.lanes import Lanes, StreamOrder
from hcmegatron.pipeline.node_times import size_of_new, timing

Gradients = Sequence[Tensor | None]


class GraphBoundary:
    """Where a state enters a segment of the graph.

    Attributes:
        gradients: of the state's tensors, once that segment has been differentiated.
    """

    def __init__(self) -> None:
        self.gradients: Gradients = ()

    def cross(self, state: State) -> State:
        """The same values, as the beginning of a graph of their own."""
        root = torch.empty(0, requires_grad=True)  # what makes autograd follow the state; it gets no gradient
        return _Boundary.apply(self, root, *(tensor.detach() for tensor in state))


class _Boundary(torch.autograd.Function):
    """Identity, which hands gradients to its boundary. It saves nothing; a detached leaf would keep its values."""

    @staticmethod
    def forward(ctx: Any, boundary: GraphBoundary, root: Tensor, *state: Tensor) -> State:
        ctx.set_materialize_grads(False)
        ctx.boundary = boundary
        return tuple(tensor.view_as(tensor) for tensor in state)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        ctx.boundary.gradients = gradients
        return (None,) * (2 + len(gradients))


class GraphSegment:
    """The graph between a boundary (or where the micro-batch enters the chunk) and a state."""

    def __init__(
        self,
        state: State,
        boundary: GraphBoundary | None = None,
        lane: Lane = Lane.COMPUTE,
        node: str = "",
    ) -> None:
        # edges keep the graph without keeping the state
        self.edges: list[GradientEdge | None] = [
            get_gradient_edge(tensor) if tensor.requires_grad else None for tensor in state
        ]
        self.boundary, self.lane, self.node = boundary, lane, node

    def backward(self, gradients: Gradients) -> Gradients:
        """Gradients of what entered, from those of what came out; weights get theirs."""
        roots = [
            (edge, gradient)
            for edge, gradient in zip(self.edges, gradients, strict=True)
            if edge is not None and gradient is not None
        ]
        if roots:
            torch.autograd.backward(*zip(*roots, strict=True))
        self.edges = []
        return self.boundary.gradients if self.boundary else ()


class MicroBatchGraph:
    """One micro-batch between its F and its B: the segments of its graph.

    Args:
        lanes: that nodes run on.

    Attributes:
        layers: per layer, the segments of its nodes.
        head: where the last state enters the final norm, or the message to the next stage.
    """

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.order = StreamOrder()
        self.layers: list[list[GraphSegment]] = []
        self.head = GraphBoundary()
        self._state: State = ()
        self._gradients: Gradients = ()
        self._left: dict[object, list[DeferredWgrads]] = {}

    # Forward.

    def begin(self, state: State, layers: int) -> None:
        """What the first layer is given."""
        self.embedding = GraphSegment(state)
        self.layers = [[] for _ in range(layers)]
        self._state = state

    def forward(self, layer: int, node: Node, micro_batch: MicroBatch) -> None:
        """The layer's next node."""
        boundary = GraphBoundary()
        timed = timing(self.lanes.times, "F", node.name, node.lane)
        with self.lanes.on(node.lane, self.order, self._state), timed as made:
            entered = boundary.cross(self._state)
            self._state = node.forward(entered, micro_batch)
            self.layers[layer].append(GraphSegment(self._state, boundary, node.lane, node.name))
            if self.lanes.times is not None:
                made.append(size_of_new(entered, self._state))

    def end(self) -> State:
        """The last layer's streams, for what comes after the layers. They are ready on the last node's lane, so that
        computation need not wait for it before they are sent (`join`)."""
        state, self._state = self.head.cross(self._state), ()
        return state

    def join(self) -> None:
        """Computation from now on comes after the last node."""
        with self.lanes.on(Lane.COMPUTE, self.order, self._state):
            pass

    # Backward. What comes after the layers has been differentiated by then, which filled `head`.

    def begin_backward(self) -> None:
        """Take the gradients of the last layer's streams."""
        self.order = StreamOrder()
        self._gradients = self.head.gradients

    def backward(self, layer: int, nodes: int, store: WeightGradStore | None, key: object = None) -> None:
        """Of the layer's last `nodes` nodes that have not been.

        Args:
            store: leave weight gradients there, for `weights(key)`; None: compute them.
        """
        for _ in range(nodes):
            segment = self.layers[layer].pop()
            deferring = nullcontext() if store is None else store.deferring(queued=False)
            timed = timing(self.lanes.times, "I", segment.node, segment.lane)
            with self.lanes.on(segment.lane, self.order, self._gradients), timed, deferring as left:
                self._gradients = segment.backward(self._gradients)
            if store is not None:
                # `weights` computes what is left on the current stream, which waits for no other
                assert segment.lane is Lane.COMPUTE or not left.tensors, (
                    f"weight gradients left on {segment.lane}"
                )
                self._left.setdefault(key, []).append(left)

    def weights(self, key: object, node: str = "") -> None:
        """The weight gradients left under `key`, those of `node` where somebody asks for its times."""
        with timing(self.lanes.times, "W", node, Lane.COMPUTE):
            for left in self._left.pop(key):
                left.run()

    def end_backward(self) -> None:
        """What comes before the layers."""
        with self.lanes.on(Lane.COMPUTE, self.order, self._gradients):
            self.embedding.backward(self._gradients)
        self._gradients = ()
