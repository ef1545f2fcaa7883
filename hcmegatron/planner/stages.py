"""The network cut into pipeline stages. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelStage:
    """Which part of the network a chunk is: its layers, and whether the embedding and the head belong to it."""

    layers: range
    first: bool
    last: bool


def stages(layers: int, count: int) -> list[ModelStage]:
    """`layers` split over `count` stages as evenly as possible, the earlier ones taking what is left over."""
    bounds = [-(-layers * stage // count) for stage in range(count + 1)]
    return [
        ModelStage(range(bounds[stage], bounds[stage + 1]), stage == 0, stage == count - 1)
        for stage in range(count)
    ]
