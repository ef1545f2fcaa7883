"""The inside of F, B and FB: layers as nodes on lanes, and what overlapping two layers hides.

A layer is attention, dispatch (all-to-all), experts, combine (all-to-all); a dense layer has no all-to-alls
and its MLP stands for the experts. Each lane runs what is enqueued on it in order, and a node waits for the
one that feeds it. Overlapping a forward with a backward enqueues their nodes in the order published with
DeepSeek's profile (github.com/deepseek-ai/profile-data). Lanes are taken as independent of one another:
kernels that share a GPU's multiprocessors slow each other down, which only a measurement shows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Lane = Literal["compute", "high", "communication"]
Role = Literal["attention", "dispatch", "experts", "combine"]
Phase = Literal["F", "I", "W"]
ROLES: tuple[Role, ...] = ("attention", "dispatch", "experts", "combine")
LANES: tuple[Lane, ...] = ("compute", "high", "communication")

# (role, phase) of one layer's forward and another's backward; phases F of the forward, I and W of the
# backward.
PAIR_ORDER: tuple[tuple[Role, Phase], ...] = (
    ("combine", "I"),
    ("attention", "F"),
    ("experts", "I"),
    ("dispatch", "F"),
    ("dispatch", "I"),
    ("experts", "W"),
    ("experts", "F"),
    ("attention", "I"),
    ("attention", "W"),
    ("combine", "F"),
)


@dataclass(frozen=True)
class NodeCost:
    """A piece of a layer: times of its forward, of its input gradient and of its weight gradient."""

    role: Role
    lane: Lane
    forward: float
    dgrad: float
    wgrad: float = 0.0

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"node {self.role!r}: a layer's nodes are {', '.join(ROLES)}")
        if self.lane not in LANES:
            raise ValueError(f"node {self.role}: lane {self.lane!r} is none of {', '.join(LANES)}")
        for name in ("forward", "dgrad", "wgrad"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"node {self.role}: {name}={getattr(self, name)}: a finite number, 0 or more"
                )


class Slot(NamedTuple):
    """A node's phase at its time, relative to the start of the action."""

    role: Role
    phase: Phase
    lane: Lane
    start: float
    end: float


Layer = Sequence[NodeCost]


class Turn(NamedTuple):
    """A role's phase in the order of an FB. ``layer`` counts within the stage: of the forward for phase F, of
    the backward for I and W."""

    layer: int
    role: Role
    phase: Phase


class _Lanes:
    """Slots in the order in which they are enqueued. Forward nodes form one chain, input gradients another; a
    weight gradient hangs on the input gradient of its own node."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.free: dict[Lane, float] = dict.fromkeys(LANES, 0.0)
        self.chain: dict[Phase, float] = {"F": 0.0, "I": 0.0}
        self.dgrad_end: dict[tuple[int, Role], float] = {}

    def put(self, node: NodeCost, phase: Phase, layer: int = 0) -> None:
        took = {"F": node.forward, "I": node.dgrad, "W": node.wgrad}[phase]
        needed = self.dgrad_end[layer, node.role] if phase == "W" else self.chain[phase]
        start = max(self.free[node.lane], needed) if took else needed
        end = start + took
        if phase == "I":
            self.dgrad_end[layer, node.role] = end
        if phase != "W":
            self.chain[phase] = end
        if took:
            self.free[node.lane] = end
            self.slots.append(Slot(node.role, phase, node.lane, start, end))

    def forward(self, layer: Layer) -> None:
        for node in sorted(layer, key=lambda node: ROLES.index(node.role)):
            self.put(node, "F")

    def backward(self, layer: Layer, weights: bool = True) -> None:
        """Experts' W behind dispatch's I, where it covers the all-to-all."""
        nodes = {node.role: node for node in layer}
        for role, phase in PAIR_ORDER:
            if role in nodes and phase != "F" and (weights or phase == "I"):
                self.put(nodes[role], phase)

    @property
    def end(self) -> float:
        return max((slot.end for slot in self.slots), default=0.0)


def forward_slots(layers: Sequence[Layer]) -> list[Slot]:
    """F of a stage, its layers first to last."""
    lanes = _Lanes()
    for layer in layers:
        lanes.forward(layer)
    return lanes.slots


def backward_slots(layers: Sequence[Layer], weights: bool = True) -> list[Slot]:
    """B of a stage, its layers last to first; I without ``weights``."""
    lanes = _Lanes()
    for layer in reversed(layers):
        lanes.backward(layer, weights)
    return lanes.slots


def pair_turns(
    forward: Sequence[Collection[Role]], backward: Sequence[Collection[Role]], lead: int = 0, trail: int = 0
) -> list[Turn]:
    """The order of an FB: ``lead`` layers of the forward alone, then layer by layer with the backward, then
    what is left of either. The weight gradients of the ``trail`` layers that the backward comes to last are
    left for the end, when both results are on their way: they hide the hops and the last combine.

    ``forward`` and ``backward`` hold the roles of the stages' layers. The stages may differ in their number of
    layers, and in which of them have all-to-alls.
    """
    turns: list[Turn] = []

    def both(f: int | None, b: int | None) -> None:
        for role, phase in PAIR_ORDER:
            layer, layers = (f, forward) if phase == "F" else (b, backward)
            if layer is not None and role in layers[layer]:
                turns.append(Turn(layer, role, phase))

    lead = min(lead, len(forward))
    together = min(len(forward) - lead, len(backward))
    for f in range(lead):
        both(f, None)
    for i in range(together):
        both(lead + i, len(backward) - 1 - i)
    for f in range(lead + together, len(forward)):
        both(f, None)
    for b in reversed(range(len(backward) - together)):
        both(None, b)
    trailing = [turn for turn in turns if turn.phase == "W" and turn.layer < trail]
    return [turn for turn in turns if turn not in trailing] + trailing


def pair_slots(
    forward: Sequence[Layer], backward: Sequence[Layer], lead: int = 0, trail: int = 0
) -> list[Slot]:
    """FB in the order of ``pair_turns``."""
    lanes = _Lanes()
    by_role = {
        phase: [{node.role: node for node in layer} for layer in layers]
        for phase, layers in (("F", forward), ("I", backward), ("W", backward))
    }
    leading = sum(map(len, by_role["F"][:lead]))
    for index, turn in enumerate(pair_turns(by_role["F"], by_role["I"], lead, trail)):
        if index == leading:
            # B joins only now: its chain starts where the leading layers have got to.
            lanes.chain["I"] = lanes.chain["F"]
        lanes.put(by_role[turn.phase][turn.layer][turn.role], turn.phase, turn.layer)
    return lanes.slots


def makespan(slots: Sequence[Slot]) -> float:
    return max((slot.end for slot in slots), default=0.0)


def exposed_communication(slots: Sequence[Slot]) -> float:
    """The time within the slots' makespan during which no lane computes."""
    edges = sorted((slot.start, slot.end) for slot in slots if slot.lane != "communication")
    covered, until = 0.0, 0.0
    for start, end in edges:
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return makespan(slots) - covered
