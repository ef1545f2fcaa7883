"""What a rank of a fuzzed run brings back. No torch, so that whoever reads it need not import it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Report:
    """A rank's run.

    Attributes:
        refused: the ConfigError that ended it, if any.
        steps: steps that were begun.
        state: step -> name -> digest of every weight, buffer and optimizer tensor after it.
        weights, gradients: step -> this rank's parts of the global tensors (tests.layouts.network.values).
        masks: step -> what every dropout of its forward was drawn from.
        place: (data-parallel, pipeline, tensor) rank.
    """

    refused: str | None = None
    steps: int = 0
    state: dict[int, dict[str, str]] = field(default_factory=dict)
    weights: dict[int, list] = field(default_factory=dict)
    gradients: dict[int, list] = field(default_factory=dict)
    masks: dict[int, list[str]] = field(default_factory=dict)
    place: tuple[int, int, int] = (0, 0, 0)
