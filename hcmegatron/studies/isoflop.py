"""Iso-FLOP profiles: of runs with one compute budget and several sizes, the size of least loss; and how it grows with
the budget (Hoffmann et al., 2203.15556, Approach 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hcmegatron.studies.laws import Array

TOLERANCE = 0.05  # of budgets that count as one, in log


class Profile(NamedTuple):
    """The runs of one budget.

    Attributes:
        compute: C, FLOPs.
        runs: how many.
        parameters: N of least loss; None where the parabola has none within the sizes that were run.
        loss: there.
    """

    compute: float
    runs: int
    parameters: float | None
    loss: float | None


class Parabola(NamedTuple):
    """loss = curvature x^2 + slope x + constant, x = log N - middle; from `low` to `high` N were run."""

    curvature: float
    slope: float
    constant: float
    middle: float
    low: float
    high: float

    def __call__(self, parameters: Array) -> Array:
        """The loss at N, [...]."""
        x = np.log(parameters) - self.middle
        return self.curvature * x**2 + self.slope * x + self.constant

    def least(self) -> tuple[float, float] | None:
        """N of least loss, and the loss; None where that is not within the sizes that were run."""
        if self.curvature <= 0:
            return None
        at = float(np.exp(self.middle - self.slope / (2 * self.curvature)))
        return (at, float(self(np.array(at)))) if self.low <= at <= self.high else None


def parabola(parameters: Array, losses: Array) -> Parabola:
    """Through the runs of one budget, by least squares."""
    middle = float(np.log(parameters).mean())
    curvature, slope, constant = np.polyfit(np.log(parameters) - middle, losses, 2).tolist()
    return Parabola(curvature, slope, constant, middle, float(parameters.min()), float(parameters.max()))


def budgets(compute: Array, parameters: Array) -> list[NDArray[np.intp]]:
    """The runs of every budget that three sizes or more have, ascending."""
    order = np.argsort(compute)
    breaks = np.flatnonzero(np.diff(np.log(compute[order])) > TOLERANCE) + 1
    return [own for own in np.split(order, breaks) if len(np.unique(parameters[own])) >= 3]


def profiles(compute: Array, parameters: Array, losses: Array) -> list[Profile]:
    """A parabola of loss in log N through the runs of every budget that three sizes or more have."""
    found = []
    for own in budgets(compute, parameters):
        least = parabola(parameters[own], losses[own]).least() or (None, None)
        found.append(Profile(float(np.exp(np.log(compute[own]).mean())), len(own), *least))
    return found


def growth(found: Sequence[Profile]) -> tuple[float, float] | None:
    """(a, k) of N* = k C^a through the budgets whose least loss lies within their sizes; None where fewer than two."""
    known = [profile for profile in found if profile.parameters is not None]
    if len(known) < 2:
        return None
    log_c = np.log([profile.compute for profile in known])
    log_n = np.log(np.array([profile.parameters for profile in known], float))
    exponent, constant = np.polyfit(log_c, log_n, 1)
    return float(exponent), float(np.exp(constant))
