"""Iso-FLOP profiles: of runs with one compute budget and several sizes, the size of least loss; and how it grows with
the budget (Hoffmann et al., 2203.15556, Approach 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

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


def profiles(compute: Array, parameters: Array, losses: Array) -> list[Profile]:
    """A parabola of loss in log N through the runs of every budget that three sizes or more have."""
    order = np.argsort(compute)
    breaks = np.flatnonzero(np.diff(np.log(compute[order])) > TOLERANCE) + 1
    found = []
    for own in np.split(order, breaks):
        log_n = np.log(parameters[own])
        if len(np.unique(log_n)) < 3:
            continue
        budget = float(np.exp(np.log(compute[own]).mean()))
        curvature, slope, constant = np.polyfit(log_n - log_n.mean(), losses[own], 2)
        at = -slope / (2 * curvature) if curvature > 0 else np.inf
        inside = log_n.min() <= at + log_n.mean() <= log_n.max()
        least = (
            (float(np.exp(at + log_n.mean())), float(constant + slope * at / 2)) if inside else (None, None)
        )
        found.append(Profile(budget, len(own), *least))
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
