"""Laws of the loss, as sums of powers: log L = log sum_j exp(x_j . theta), x_j a row of known numbers for every run.

- `loss_law`: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., 2203.15556, Eq. 10);
- `shared_law`: L(N, D) with E, A, B, alpha and beta shared, and each connection but the first in place of the first at
  m_N N parameters and m_D D tokens. At the best size for its compute the first needs m_N m_D times as much compute;
- `compute_law`: L(C) = E + K / (m C)^gamma, with a factor m of compute for each connection but the first. m says how
  many times as much compute the first needs for the same loss: E, K and gamma are shared.

Logs of N, D and C are taken from their means, for a fit in which intercepts and exponents do not pull at each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """A law of the loss for given runs.

    Attributes:
        rows: x, [terms, runs, parameters].
        starts: where fits begin, [starts, parameters].
        names: of what `natural` returns.
        shift: matrix [parameters, parameters] that undoes the centring of the logs.
        ratio: positions of (numerator, denominator) whose quotient takes the numerator's place, before exp.
        exps: positions of which exp is taken: coefficients, not exponents.
    """

    rows: Array
    starts: Array
    names: tuple[str, ...]
    shift: Array
    exps: tuple[int, ...]
    ratios: tuple[tuple[int, int], ...] = ()

    def log_loss(self, theta: Array) -> tuple[Array, Array]:
        """log L of every run, [runs], and its gradient in theta, [runs, parameters]."""
        terms = self.rows @ theta
        total = np.logaddexp.reduce(terms, axis=0)
        return total, np.einsum("jr,jrp->rp", np.exp(terms - total), self.rows)

    def natural(self, theta: Array) -> Array:
        """The law's own numbers of fitted parameters [..., parameters], in the order of `names`."""
        numbers = theta @ self.shift.T
        for upper, lower in self.ratios:
            numbers[..., upper] = numbers[..., upper] / numbers[..., lower]
        for position in self.exps:
            numbers[..., position] = np.exp(numbers[..., position])
        return numbers


def loss_law(parameters: Array, tokens: Array) -> Law:
    """E + A / N^alpha + B / D^beta. theta = (e, a, b, alpha, beta).

    Args:
        parameters: N of every run; tokens: D.
    """
    log_n, log_d = np.log(parameters), np.log(tokens)
    mean_n, mean_d = log_n.mean(), log_d.mean()
    rows = np.zeros((3, len(log_n), 5))
    rows[0, :, 0] = rows[1, :, 1] = rows[2, :, 2] = 1
    rows[1, :, 3], rows[2, :, 4] = mean_n - log_n, mean_d - log_d
    shift = np.eye(5)
    shift[1, 3], shift[2, 4] = mean_n, mean_d
    grid = np.meshgrid([-0.5, 0.5, 1.0], [-2.0, 0.0], [-2.0, 0.0], [0.2, 0.6], [0.2, 0.6])
    starts = np.stack([axis.ravel() for axis in grid], axis=1)
    return Law(rows, starts, ("E", "A", "B", "alpha", "beta"), shift, (0, 1, 2))


def shared_law(parameters: Array, tokens: Array, kinds: Sequence[str], baseline: str) -> Law:
    """E + A / (m_N N)^alpha + B / (m_D D)^beta. theta = (e, a, b, alpha, beta, then of each kind but the baseline alpha
    log m_N and beta log m_D).

    The least loss for compute C is E + G C^(-alpha beta / (alpha + beta)) with G in (A^beta B^alpha)^(1 / (alpha +
    beta)) (Hoffmann et al., 2203.15556, Eq. 4): a kind has there what the baseline has at m_N m_D C.

    Args:
        parameters: N of every run; tokens: D; kinds: its connection; baseline: whose factors are 1.

    Raises:
        ValueError: the baseline has no run.
    """
    others = _others(kinds, baseline)
    law = loss_law(parameters, tokens)
    rows = np.zeros((3, len(kinds), 5 + 2 * len(others)))
    rows[:, :, :5] = law.rows
    for column, kind in enumerate(others):
        own = np.equal(kinds, kind).astype(float)
        rows[1, :, 5 + 2 * column] = rows[2, :, 6 + 2 * column] = -own
    shift = np.eye(rows.shape[2])
    shift[:5, :5] = law.shift
    factors = range(5, rows.shape[2])
    return Law(
        rows,
        np.hstack([law.starts, np.zeros((len(law.starts), len(factors)))]),
        (*law.names, *(f"m_{letter}[{kind}]" for kind in others for letter in "ND")),
        shift,
        (*law.exps, *factors),
        tuple((position, 3 + (position - 5) % 2) for position in factors),
    )


def _others(kinds: Sequence[str], baseline: str) -> list[str]:
    others = sorted(set(kinds) - {baseline})
    if baseline not in kinds:
        raise ValueError(f"baseline = {baseline}: no run has it; there are {', '.join(others)}")
    return others


def compute_law(compute: Array, kinds: Sequence[str], baseline: str) -> Law:
    """E + K / (m C)^gamma. theta = (e, k, gamma, gamma log m of each kind but the baseline).

    Args:
        compute: C of every run, FLOPs; kinds: its connection; baseline: whose m is 1.

    Raises:
        ValueError: the baseline has no run.
    """
    others = _others(kinds, baseline)
    log_c = np.log(compute)
    rows = np.zeros((2, len(log_c), 3 + len(others)))
    rows[0, :, 0] = rows[1, :, 1] = 1
    rows[1, :, 2] = log_c.mean() - log_c
    for column, kind in enumerate(others, 3):
        rows[1, :, column] = -np.equal(kinds, kind).astype(float)
    shift = np.eye(3 + len(others))
    shift[1, 2] = log_c.mean()
    grid = np.meshgrid([-0.5, 0.5, 1.0], [-3.0, -1.0, 0.0], [0.05, 0.2, 0.5])
    starts = np.stack([axis.ravel() for axis in grid], axis=1)
    starts = np.hstack([starts, np.zeros((len(starts), len(others)))])
    multipliers = range(3, 3 + len(others))
    return Law(
        rows,
        starts,
        ("E", "K", "gamma", *(f"m[{kind}]" for kind in others)),
        shift,
        (0, 1, *multipliers),
        tuple((position, 2) for position in multipliers),
    )
