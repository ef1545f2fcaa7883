"""Muon: momentum whose matrices are orthogonalised before they are added (Jordan et al., 2024; 2502.16982)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hcmegatron.config import schema
from hcmegatron.planner.layers import Matrix
from hcmegatron.training.whole_matrices import Piece, WholeMatrices

MOMENTUM = "momentum_buffer"
# Of X <- a X + b (X X^T) X + c (X X^T)^2 X. The first makes small singular values grow fastest, and leaves all between
# 0.7 and 1.2; the second brings those near 1 to 1 (DeepSeek-V4, section 2.4).
GROWING, CONVERGING = (3.4445, -4.7750, 2.0315), (2.0, -1.5, 0.5)
COEFFICIENTS = {"5": (GROWING,) * 5, "8+2": (GROWING,) * 8 + (CONVERGING,) * 2}
SMALLEST_NORM = 1e-7


def newton_schulz(matrix: Tensor, coefficients: Iterable[tuple[float, float, float]]) -> Tensor:
    """U V^T, about, of a matrix [rows, columns] = U S V^T; in the matrix's own precision."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    x = wide / wide.norm().clamp(min=SMALLEST_NORM)  # no singular value is above 1
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.mT


def direction_of(
    whole: Tensor, matrix: Matrix, coefficients: Iterable[tuple[float, float, float]], rms: float
) -> Tensor:
    """What a rate of 1 subtracts from a weight [out, in], given its momentum.

    Fused projections are orthogonalised apart. Each is scaled to the root mean square `rms` that U V^T has where all
    its singular values are 1 (2502.16982, section 2.2).
    """

    def of_one(projection: Tensor) -> Tensor:
        return newton_schulz(projection, coefficients) * (rms * math.sqrt(max(projection.shape)))

    if not matrix.fused:
        return of_one(whole)
    columns = whole.shape[1]
    grouped = whole.view(matrix.groups, sum(matrix.fused), columns).split(matrix.fused, dim=1)
    done = [of_one(rows.reshape(-1, columns)).view(matrix.groups, -1, columns) for rows in grouped]
    return torch.cat(done, dim=1).view_as(whole)


class Muon:
    """Of what this rank holds of matrices: elements of whole ones, of tensor-parallel parts or of flat shards.

    Momentum and weights are updated element by element where they are; in between a matrix is whole on one rank, which
    orthogonalises it in the precision of the model's weight. So the update is that of one process, whatever the layout.
    torch's optimizers take no shard of a buffer, which is a view; this one is as they are in what is used of them.

    Args:
        groups: parameter groups, with the rate and decay that they have under AdamW.
        matrices: where the pieces of all matrices are.
        settings: of matrices; `adamw` of everything.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        matrices: WholeMatrices,
        settings: schema.Muon,
        adamw: schema.Optimizer,
    ) -> None:
        self.param_groups = groups
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self.matrices, self.settings = matrices, settings
        self.relative_rate = 1.0 if settings.lr is None else settings.lr / adamw.lr

    def moments(self, parameter: Tensor) -> dict[str, Tensor]:
        """The running mean of a parameter's gradient, zero where it had no update yet."""
        state = self.state[parameter]
        if not state:
            state[MOMENTUM] = torch.zeros_like(parameter)
        return dict(state)

    @torch.no_grad()
    def step(self) -> None:
        """Update every piece that this rank holds. Collective over the ranks of `matrices`."""
        rates: dict[Tensor, float] = {}
        for group in self.param_groups:
            rate = group["lr"] * self.relative_rate
            decay = self.settings.weight_decay
            decay = group["weight_decay"] if decay is None else decay * group["wd_mult"]
            for parameter in group["params"]:
                self.moments(parameter)[MOMENTUM].lerp_(parameter.grad, 1 - self.settings.momentum)
                parameter.mul_(1 - rate * decay)
                rates[parameter] = rate
        coefficients, rms = COEFFICIENTS[self.settings.newton_schulz], self.settings.rms
        for piece, update in self.matrices.updates(
            self._momentum, lambda whole, matrix: direction_of(whole, matrix, coefficients, rms)
        ):
            piece.of(piece.weights).sub_(update, alpha=rates[piece.weights])

    def _momentum(self, piece: Piece) -> Tensor:
        """What is orthogonalised, of a piece."""
        momentum = piece.of(self.state[piece.weights][MOMENTUM])
        if not self.settings.nesterov:
            return momentum
        return piece.of(piece.weights.grad).lerp(momentum, self.settings.momentum)
