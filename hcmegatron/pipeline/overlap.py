"""Stages that overlap a forward with another micro-batch's backward, node by node (FB).

The forward sets the pace: it runs as Megatron runs it, and between its nodes come those of the backward whose turn it
is, in the order published with DeepSeek's profile (schedules/node_costs.py). On CUDA every node is enqueued on its
lane; on CPU they run one after another, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hcmegatron.model.execution import Execution, Layer
from hcmegatron.model.gpt import ConnectionGPT
from hcmegatron.model.nodes import ActivationPolicy, Lane, MicroBatch, Node, State
from hcmegatron.pipeline.chunk_stage import ChunkStage
from hcmegatron.pipeline.lanes import Lanes
from hcmegatron.pipeline.micro_batch_graph import MicroBatchGraph
from hcmegatron.pipeline.node_times import NodeTimes
from schedules.node_costs import Role, Turn, pair_turns

# Roles of a layer's nodes: routing goes with attention, the merge into the streams with the combine. Whole layers
# (recomputed) are one node.
ROLE: dict[str, Role] = {
    "attention": "attention",
    "route": "attention",
    "dispatch": "dispatch",
    "experts": "experts",
    "mlp": "experts",
    "layer": "experts",
    "combine": "combine",
    "merge": "combine",
}


def roles(nodes: tuple[Node, ...]) -> dict[Role, int]:
    """A layer's roles in order, and how many nodes each has."""
    return {role: len(list(group)) for role, group in groupby(nodes, key=lambda node: ROLE[node.name])}


class Pairing(NamedTuple):
    """How an FB is laid out (schedules.node_costs.pair_turns): layers of F before B joins, and last layers of B
    whose weight gradients come after everything else."""

    lead: int
    trail: int


def pairing(forward: Sequence[Collection[Role]], backward: Sequence[Collection[Role]]) -> Pairing:
    """F wholly first where there are no all-to-alls to hide, for then its output leaves earliest. Else both together,
    and the weight gradients last: both results leave before them, so that they hide the hops."""
    hides = any("dispatch" in layer for layer in (*forward, *backward))
    return Pairing(0 if hides else len(forward), len(backward))


class OverlappedStage(ChunkStage):
    """A ChunkStage with FB (schedules/runtime/stage.py: OverlappingStage).

    Args:
        lanes: shared by the rank's stages.
        pairing: of the roles of F's layers and of B's.

    Attributes:
        executed: the turns of the last FB whose F was this stage's, in the order in which their nodes ran.
    """

    def __init__(
        self,
        lanes: Lanes,
        chunk: nn.Module,
        model: ConnectionGPT,
        execution: Execution,
        pairing: Callable[..., Pairing] = pairing,
    ) -> None:
        super().__init__(chunk, model, execution)
        self.lanes, self.pairing = lanes, pairing
        self.executed: list[Turn] = []
        self._micro_batch_graphs: dict[int, MicroBatchGraph] = {}

    @property
    def roles(self) -> list[dict[Role, int]]:
        """Of every layer of the chunk."""
        return [roles(self.execution.nodes(layer)) for layer in self.model.decoder.layers]

    def listen(self, times: NodeTimes | None) -> None:
        """As of every stage: here the lanes run the nodes."""
        self.lanes.times = times

    def begin(self, *args: object) -> None:
        super().begin(*args)
        self._micro_batch_graphs.clear()

    def forward(self, microbatch: int, input: Tensor | None) -> Tensor | None:
        """F, its graph cut between nodes unless the step is forward only."""
        if self._forward_only:
            return super().forward(microbatch, input)
        graph = self._micro_batch_graphs[microbatch] = MicroBatchGraph(self.lanes)
        output = self._forward(microbatch, input, self._overlapped(graph))
        graph.join()
        return output

    def backward(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """B, the experts' weight gradients beside the all-to-all that follows their input gradients."""
        back = _Backward(self, microbatch)
        back.join(output_grad)
        for turn in pair_turns([], self.roles):
            back.turn(turn)
        gradient = back.finish()
        self.weights_done()
        return gradient

    def backward_input(self, microbatch: int, output_grad: Tensor | None) -> Tensor | None:
        """I: every weight gradient left for W."""
        back = _Backward(self, microbatch)
        with self.wgrad_store.deferring():
            back.join(output_grad)
            for layer, counts in reversed(list(enumerate(self.roles))):
                back.graph.backward(layer, sum(counts.values()), None)
            return back.finish()

    def forward_backward(
        self,
        microbatch: int,
        input: Tensor | None,
        backward_stage: OverlappedStage,
        backward_microbatch: int,
        wait_grad: Callable[[], Tensor | None],
        send_output: Callable[[Tensor | None], None],
        send_input_grad: Callable[[Tensor | None], None],
    ) -> None:
        """FB, in the order of schedules.node_costs.pair_turns."""
        self.executed = []
        both = self.roles, backward_stage.roles
        turns = pair_turns(*both, *self.pairing(*both))
        back = _Backward(backward_stage, backward_microbatch, self.executed)
        pace = _Pace(turns, back, wait_grad, send_input_grad)
        graph = self._micro_batch_graphs[microbatch] = MicroBatchGraph(self.lanes)
        output = self._forward(microbatch, input, self._overlapped(graph, pace))
        with self.lanes.on(graph.order.lane or Lane.COMPUTE, graph.order):
            send_output(output)
        del output
        pace.rest()
        backward_stage.weights_done()
        graph.join()

    def _overlapped(self, graph: MicroBatchGraph, pace: _Pace | None = None) -> Overlapped:
        return Overlapped(self.execution, graph, pace, self.executed, self.model.post_process)


class Overlapped(Execution):
    """Of one micro-batch's F: its graph cut between nodes, and another micro-batch's backward between them.

    Args:
        usual: the activation policy, and what is run of a layer.
        graph: where the segments of F's graph go.
        pace: what comes between the nodes; None: nothing.
        executed: gets F's turns.
        head: the chunk's layers are followed by the head, which computes.
    """

    def __init__(
        self, usual: Execution, graph: MicroBatchGraph, pace: _Pace | None, executed: list[Turn], head: bool
    ) -> None:
        self.usual, self.graph, self.pace = usual, graph, pace
        self.executed, self.head = executed, head

    def activation_policy(self, sublayers: int) -> ActivationPolicy:
        return self.usual.activation_policy(sublayers)

    def nodes(self, layer: Layer) -> tuple[Node, ...]:
        return self.usual.nodes(layer)

    def run(self, layers: Iterable[Layer], state: State, micro_batch: MicroBatch) -> State:
        """As every execution's; on return what was enqueued last is the last node, on its lane."""
        graph, layers = self.graph, list(layers)
        graph.begin(state, len(layers))
        for index, layer in enumerate(layers):
            role = None
            for node in self.nodes(layer):
                if self.pace and ROLE[node.name] != role:
                    role = ROLE[node.name]
                    self.pace.until(index, role)
                    self.executed.append(Turn(index, role, "F"))
                graph.forward(index, node, micro_batch)
        if self.head:
            graph.join()
        return graph.end()


class _Backward:
    """B of one micro-batch in turns."""

    def __init__(self, stage: OverlappedStage, microbatch: int, executed: list[Turn] | None = None) -> None:
        self.stage, self.microbatch = stage, microbatch
        self.executed = [] if executed is None else executed
        self.graph = stage._micro_batch_graphs.pop(microbatch)

    def join(self, output_grad: Tensor | None) -> None:
        """What comes after the layers."""
        self.leaf, edge = self.stage.take_graph(self.microbatch)
        torch.autograd.backward((edge,), (self.stage.root_gradient(output_grad),))
        self.graph.begin_backward()

    def turn(self, turn: Turn) -> None:
        """I or W of one role of one layer."""
        self.executed.append(turn)
        key = turn.layer, turn.role
        if turn.phase == "W":
            self.graph.weights(key, turn.role)
        else:
            nodes = self.stage.roles[turn.layer][turn.role]
            store = self.stage.wgrad_store if turn.role in ("attention", "experts") else None
            self.graph.backward(turn.layer, nodes, store, key)

    def finish(self) -> Tensor | None:
        """What comes before the layers; the gradient of the chunk's input."""
        self.graph.end_backward()
        return None if self.leaf is None else self.leaf.grad


class _Pace:
    """The turns of an FB that are left."""

    def __init__(
        self,
        turns: list[Turn],
        back: _Backward,
        wait_grad: Callable[[], Tensor | None],
        send_input_grad: Callable[[Tensor | None], None],
    ) -> None:
        self.turns, self.back, self.wait_grad, self.send_input_grad = turns, back, wait_grad, send_input_grad
        self.position, self.joined = 0, False
        self.last = max(index for index, turn in enumerate(turns) if turn.phase == "I")

    def until(self, layer: int, role: Role) -> None:
        """Run what comes before the forward's turn (layer, role)."""
        while (turn := self.turns[self.position]).phase != "F":
            self._run(turn)
        assert turn == Turn(layer, role, "F"), f"{turn} is next, not the forward of {role} in layer {layer}"
        self.position += 1

    def rest(self) -> None:
        """Run what is left when the forward is through."""
        while self.position < len(self.turns):
            self._run(self.turns[self.position])

    def _run(self, turn: Turn) -> None:
        if not self.joined:
            self.back.join(self.wait_grad())
            self.joined = True
        self.back.turn(turn)
        if self.position == self.last:
            # ahead of the weight gradients that are left: the previous stage waits for it
            self.send_input_grad(self.back.finish())
        self.position += 1
