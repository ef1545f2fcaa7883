"""The gap of the loss as a power of compute: |gap| = k C^s, by least squares of logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

FEWEST = 3  # budgets: a line through two says nothing of itself


class PowerLaw(NamedTuple):
    """gap = sign k C^s.

    Attributes:
        exponent: s, with `low` and `high`, a t-interval with the budgets less two degrees of freedom.
        compute: of the budgets, FLOPs.
    """

    sign: float
    log_k: float
    exponent: float
    low: float
    high: float
    compute: tuple[float, ...]

    def __call__(self, compute: np.ndarray) -> np.ndarray:
        return self.sign * np.exp(self.log_k + self.exponent * np.log(compute))


def power_law(compute: Sequence[float], gaps: Sequence[float], level: float) -> PowerLaw | str:
    """The law, or why there is none.

    Args:
        compute: C of every budget, FLOPs; gaps: there, nats.
    """
    if len(compute) < FEWEST:
        return f"it takes {FEWEST} budgets of compute; there are {len(compute)}"
    signs = set(np.sign(gaps).tolist())
    if len(signs) > 1 or 0 in signs:
        return "gaps of both signs have no power of their own"
    x, y = np.log(compute), np.log(np.abs(gaps))
    exponent, log_k = np.polyfit(x, y, 1)
    free = len(x) - 2
    spread = float(np.sqrt(np.sum((y - log_k - exponent * x) ** 2) / free / np.sum((x - x.mean()) ** 2)))
    half = float(stdtrit(free, (1 + level) / 2)) * spread
    return PowerLaw(
        signs.pop(), float(log_k), float(exponent), exponent - half, exponent + half, tuple(compute)
    )
