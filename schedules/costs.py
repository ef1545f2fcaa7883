"""What actions, messages and memory cost. Times share one unit (1 = F of a stage, or ms), sizes are bytes.

A pair FB of a forward f and a backward b of different stages saves what the smaller of the two stages can
overlap: FB = F_f + B_b - min(saved_f, saved_b), where a stage saves F + B - FB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from schedules.node_costs import Layer, NodeCost, backward_slots, forward_slots, makespan, pair_slots
from schedules.placement import Placement


@dataclass(frozen=True)
class StageCosts:
    """Of one stage: times of F, B, I, W and of FB, its F overlapped with its B; bytes of one live chunk's
    activations, of what stays of them between I and W, and of its parameters with their gradients and
    optimizer state.

    ``tail`` is the end of FB in which only weight gradients are left, both results having been sent.
    ``B`` defaults to I + W, ``FB`` to F + B (nothing overlaps), ``pending`` to ``activation`` (I frees
    nothing). ``layers``, where the times come from nodes (see ``nodes``), only serve for drawing.
    """

    F: float = 1.0
    I: float = 1.0
    W: float = 1.0
    B: float = math.nan
    FB: float = math.nan
    tail: float = 0.0
    activation: float = 1.0
    pending: float = math.nan
    parameters: float = 0.0
    layers: tuple[tuple[NodeCost, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, default in (("B", self.I + self.W), ("pending", self.activation)):
            if math.isnan(getattr(self, name)):
                object.__setattr__(self, name, default)
        if math.isnan(self.FB):
            object.__setattr__(self, "FB", self.F + self.B)
        for name in NUMBERS:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: a cost is a finite number, 0 or more")
        if self.FB > self.F + self.B:
            raise ValueError(
                f"FB={self.FB} is more than F + B = {self.F + self.B}: overlapping them would lose"
            )
        if self.tail > self.W:
            raise ValueError(f"tail={self.tail} is more than W={self.W}, which it is part of")
        if max(self.F, self.B) > self.FB:
            raise ValueError(f"FB={self.FB} is less than the longer of F={self.F} and B={self.B}")
        if self.pending > self.activation:
            raise ValueError(
                f"pending={self.pending} is more than activation={self.activation}, which it is part of"
            )

    def scaled(self, factor: float) -> StageCosts:
        """A stage ``factor`` times as large."""
        return StageCosts(**{name: getattr(self, name) * factor for name in NUMBERS}, layers=self.layers)


NUMBERS = tuple(entry.name for entry in fields(StageCosts) if entry.name != "layers")


def stage_costs(layers: Sequence[Layer], trail: int = 0, **sizes: float) -> StageCosts:
    """Costs of a stage made of these layers; ``sizes`` are StageCosts' bytes. FB is its F with its own B,
    both starting together, with the weight gradients of ``trail`` layers last."""
    weight = sum(node.wgrad for layer in layers for node in layer)
    F, B = makespan(forward_slots(layers)), makespan(backward_slots(layers))
    pair = pair_slots(layers, layers, trail=trail)
    FB, sent = makespan(pair), max((slot.end for slot in pair if slot.phase != "W"), default=0.0)
    return StageCosts(
        F=F,
        I=makespan(backward_slots(layers, weights=False)),
        W=weight,
        B=B,
        FB=min(FB, F + B),
        tail=min(max(0.0, min(FB, F + B) - sent), weight),
        layers=tuple(tuple(layer) for layer in layers),
        **sizes,
    )


@dataclass(frozen=True)
class Link:
    """One direction between two ranks: messages queue for the bandwidth (bytes per unit of time), not for the
    latency."""

    latency: float = 0.0
    bandwidth: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.latency < math.inf:
            raise ValueError(f"latency={self.latency}: a finite number, 0 or more")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth={self.bandwidth}: more than 0")


@dataclass(frozen=True)
class Costs:
    """``stages`` has one entry for every model stage, or a single one for all alike.

    A message has ``streams * hop_bytes`` bytes: n times the width of a residual for n streams. ``links``
    overrides ``link`` for (source rank, target rank). ``early``: a half's output leaves when the half ends,
    and F starts an FB without waiting for B's gradient; ``lead`` is the part of F that then runs before B
    joins, 1 being F wholly first. Without ``early``, in lockstep, an FB waits for both inputs and sends both
    outputs at its end.
    """

    stages: tuple[StageCosts, ...] = (StageCosts(),)
    link: Link = field(default_factory=Link)
    links: Mapping[tuple[int, int], Link] = field(default_factory=dict)
    hop_bytes: float = 0.0
    streams: int = 1
    early: bool = True
    lead: float = 1.0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: at least one entry")
        if not 0 <= self.lead <= 1:
            raise ValueError(f"lead={self.lead}: between 0 (F and B start together) and 1 (F wholly first)")
        if not 0 <= self.hop_bytes < math.inf:
            raise ValueError(f"hop_bytes={self.hop_bytes}: a finite number, 0 or more")
        if self.streams < 1:
            raise ValueError(f"streams={self.streams}: at least 1")

    @property
    def message_bytes(self) -> float:
        return self.hop_bytes * self.streams

    def per_stage_id(self, placement: Placement) -> tuple[StageCosts, ...]:
        """Costs by stage id. ValueError unless there is one entry, or one for every model stage."""
        if len(self.stages) not in (1, placement.model_stages):
            raise ValueError(
                f"costs of {len(self.stages)} stages for a schedule of {placement.model_stages}: "
                f"give 1 for all alike, or {placement.model_stages}"
            )
        return tuple(
            self.stages[placement.model_stage(s) % len(self.stages)] for s in range(placement.stages)
        )

    def between(self, source_rank: int, target_rank: int) -> Link:
        return self.links.get((source_rank, target_rank), self.link)

    def with_free_links(self) -> Costs:
        """The same costs on links that take no time."""
        return replace(self, link=Link(), links={})
