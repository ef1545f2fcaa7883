"""Fits of laws to losses, with intervals: Huber's loss of log residuals (Hoffmann et al., 2203.15556, Eq. 3 of its
appendix D), L-BFGS from many starts, bootstrap over runs.

The sum of the residuals' losses is minimised and not their mean, to tight tolerances: an optimizer that stops early is
what the published fit was found to suffer from (Besiroglu et al., 2404.10102).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from hcmegatron.studies.laws import Array, Law

DELTA = 1e-3  # of Huber's loss, in log loss
_SINGULAR = 1e-5  # of singular values, to the largest: a direction in which nothing changes
_FIRST = 40  # steps of a start before it is followed, or not
_OPTIONS = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-10, "maxcor": 20}


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        values: the law's numbers, in the order of `law.names`.
        draws: those of every bootstrap, [draws, numbers]; none without a bootstrap.
        residuals: log loss minus the law's, of every run.
    """

    law: Law
    theta: Array
    values: Array
    draws: Array
    residuals: Array

    def interval(self, level: float = 0.9) -> Array:
        """Percentiles of the bootstraps, [numbers, 2]; nan without any."""
        if not len(self.draws):
            return np.full((len(self.values), 2), np.nan)
        edge = (1 - level) / 2
        return np.quantile(self.draws, [edge, 1 - edge], axis=0).T

    def unidentified(self, level: float = 0.9, factor: float = 10.0) -> list[str]:
        """The numbers that the runs do not fix: others of them give the same losses, or the interval spans a factor of
        more than so many, or reaches zero."""
        low, high = self.interval(level).T
        wide = (
            ~((low > 1e-6) & (high < factor * low)) if len(self.draws) else np.zeros(len(self.values), bool)
        )
        unfixed = wide | self._free()
        return [name for name, found in zip(self.law.names, unfixed, strict=True) if found]

    def undetermined(self) -> list[str]:
        """The numbers of which others give the same losses, whatever the intervals are."""
        return [name for name, found in zip(self.law.names, self._free(), strict=True) if found]

    def _free(self) -> NDArray[np.bool_]:
        gradient = self.law.log_loss(self.theta)[1]
        lengths = np.linalg.norm(gradient, axis=0)
        _, sizes, directions = np.linalg.svd(gradient / np.where(lengths > 0, lengths, 1))
        free = np.abs(directions[sizes < _SINGULAR * sizes[0]])
        return (free > 0.05).any(axis=0)


def objective(theta: Array, law: Law, log_loss: Array, weights: Array, delta: float) -> tuple[float, Array]:
    """The weighted sum of Huber's losses, and its gradient in theta."""
    predicted, gradient = law.log_loss(theta)
    residual = predicted - log_loss
    clipped = np.clip(residual, -delta, delta)
    total = float(weights @ (clipped * (residual - clipped / 2)))
    return total, np.einsum("r,rp->p", weights * clipped, gradient)


@threadpool_limits.wrap(limits=1)  # threads for a handful of numbers wait for each other most of the time
def fit_law(
    law: Law,
    losses: Array,
    bootstraps: int = 0,
    seed: int = 0,
    groups: Sequence[object] | None = None,
    delta: float = DELTA,
    followed: int | None = None,
) -> Fit:
    """Fit `law` to the losses of its runs.

    Args:
        losses: of every run, nats.
        bootstraps: how often runs are drawn anew, with replacement.
        groups: of every run; those of one group are drawn together (points of one training are not independent).
        followed: how many starts are followed to their end, those that did best in their first steps; None: all.

    Raises:
        ValueError: there are fewer runs than numbers to fit, or fewer that differ in what the law knows of them, or
            fewer groups to draw.
    """
    runs, numbers = law.rows.shape[1:]
    if runs <= numbers:
        raise ValueError(f"{runs} runs cannot fix the {numbers} numbers of this law; add runs")
    distinct = len(np.unique(law.rows.swapaxes(0, 1).reshape(runs, -1), axis=0))
    if distinct < numbers:
        raise ValueError(
            f"{runs} runs at {distinct} different places cannot fix the {numbers} numbers of this law; vary N and D"
        )
    if groups is not None and (drawn := len(set(map(str, groups)))) < numbers:
        raise ValueError(
            f"{drawn} groups are too few to draw from for intervals of the {numbers} numbers of this law; add groups"
        )
    log_loss = np.log(losses)
    once = np.ones(runs)
    starts = law.starts
    if followed is not None:
        begun = [_minimise(start, law, log_loss, once, delta, _FIRST) for start in starts]
        starts = np.array([theta for _, theta in sorted(begun, key=lambda pair: pair[0])[:followed]])
    found = [_minimise(start, law, log_loss, once, delta) for start in starts]
    theta = min(found, key=lambda pair: pair[0])[1]
    draw = np.random.default_rng(seed)
    draws = [
        _minimise(theta, law, log_loss, weights, delta)[1]
        for weights in _resampled(draw, runs, bootstraps, groups)
    ]
    return Fit(
        law,
        theta,
        law.natural(theta),
        law.natural(np.array(draws).reshape(-1, numbers)),
        log_loss - law.log_loss(theta)[0],
    )


def _minimise(
    start: Array, law: Law, log_loss: Array, weights: Array, delta: float, steps: int | None = None
) -> tuple[float, Array]:
    scale = 1 / delta**2  # so that tolerances, which are absolute where the sum is below one, mean something
    found = minimize(
        lambda theta: tuple(scale * part for part in objective(theta, law, log_loss, weights, delta)),
        start,
        jac=True,
        method="L-BFGS-B",
        options=_OPTIONS if steps is None else {**_OPTIONS, "maxiter": steps},
    )
    return float(found.fun), found.x


def _resampled(
    draw: np.random.Generator, runs: int, count: int, groups: Sequence[object] | None
) -> list[Array]:
    """How often each run is in every bootstrap, [runs]."""
    _, group = np.unique(
        np.arange(runs) if groups is None else np.array([str(one) for one in groups]), return_inverse=True
    )
    size = group.max() + 1
    return [
        np.bincount(draw.integers(size, size=size), minlength=size)[group].astype(float) for _ in range(count)
    ]
