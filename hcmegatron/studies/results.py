"""A study's collected table as results: what was run (arm, place, seed, learning rate), and what came of it.

- arm: the kind of connection and its settings: what is compared (arms.py);
- place: size, tokens, and every other axis: what has to be the same for a comparison;
- seed: the repetition; learning rates are compared apart, and each arm is taken at its best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hcmegatron.connections.kinds import KINDS
from hcmegatron.studies.arms import Arm


class Place(NamedTuple):
    """Where arms are compared.

    Attributes:
        size: its name.
        tokens: D, the mean of all runs that are compared there.
        others: further axes with their values.
    """

    size: str
    tokens: float
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Point:
    """A row: a run's end, or the end of one of its decays.

    Attributes:
        group: the run that it is of, whose directory has its curves.
        rate: learning rate, or its factor; nan where it is no axis.
        parameters, tokens, flops, loss: N, D, C, nats.
        spikes: nan where they were not counted.
    """

    run: str
    group: str
    arm: Arm
    place: Place
    seed: str
    rate: float
    parameters: float
    tokens: float
    flops: float
    loss: float
    spikes: float
    diverged: bool

    @property
    def is_run(self) -> bool:
        """Whether it is a run's end, and not a decay's."""
        return self.run == self.group

    @property
    def finished(self) -> bool:
        """Whether it has a loss, and did not diverge."""
        return math.isfinite(self.loss) and not self.diverged


@dataclass(frozen=True)
class Results:
    """All points of a table.

    Attributes:
        left_out: rows without parameters or tokens.
        baseline: that gaps are to; None where the table has none of the kind.
        columns: of the table.
        flops_column: that C was read from, or how it was computed.
        unit: of losses: nats a byte, as `study collect` says; nats where the table does not say of what.
    """

    points: tuple[Point, ...]
    baseline: Arm | None
    columns: frozenset[str]
    flops_column: str
    unit: str
    left_out: int = 0

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The baseline first, then by kind as they are registered, then by settings and label."""
        return tuple(sorted({point.arm for point in self.points}, key=self._order))

    def _order(self, arm: Arm) -> tuple[object, ...]:
        known = list(KINDS).index(arm.kind) if arm.kind in KINDS else len(KINDS)
        return (
            arm != self.baseline,
            known,
            arm.kind,
            [(name, _sortable(value)) for name, value in arm.settings],
            arm.label,
        )

    @cached_property
    def names(self) -> dict[Arm, str]:
        """Of every arm: its label, and those of its settings in which arms of the label differ."""
        found = {}
        for arm in self.arms:
            alike = [other for other in self.arms if other.label == arm.label]
            apart = [
                f"{setting}={value}"
                for setting, value in arm.settings
                if len({other.get(setting) for other in alike}) > 1
            ]
            found[arm] = " ".join([arm.label, *apart])
        return found

    @cached_property
    def sizes(self) -> tuple[str, ...]:
        """By their parameters, ascending."""
        sizes = {point.place.size for point in self.points}
        return tuple(
            sorted(
                sizes, key=lambda size: np.mean([p.parameters for p in self.points if p.place.size == size])
            )
        )

    def places(self, arm: Arm) -> list[Place]:
        """Where it was trained, by size, tokens and other axes."""
        found = {point.place for point in self.points if point.arm == arm}
        return sorted(found, key=lambda place: (self.sizes.index(place.size), place.tokens, place.others))

    @cached_property
    def _by_place(self) -> dict[tuple[Arm, Place], dict[float, list[Point]]]:
        found: dict[tuple[Arm, Place], dict[float, list[Point]]] = {}
        for point in self.points:
            found.setdefault((point.arm, point.place), {}).setdefault(rate_key(point.rate), []).append(point)
        return found

    def rates(self, arm: Arm, place: Place) -> dict[float, list[Point]]:
        """The runs there by learning rate, ascending."""
        return dict(sorted(self._by_place.get((arm, place), {}).items()))

    def best(self, arm: Arm, place: Place) -> list[Point]:
        """The runs there at the learning rate with the fewest that did not finish, and of those the least mean loss."""
        return min(self.rates(arm, place).values(), key=_badness, default=[])


def _badness(points: Sequence[Point]) -> tuple[int, float]:
    losses = [point.loss for point in points if point.finished]
    return len(points) - len(losses), float(np.mean(losses)) if losses else math.inf


def rate_key(rate: float) -> float:
    return rate if math.isfinite(rate) else 0.0  # nan is no key: it differs from itself


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value
