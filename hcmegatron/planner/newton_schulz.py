"""What orthogonalising matrices costs. Without torch."""

from __future__ import annotations

from hcmegatron.config import schema
from hcmegatron.planner.layers import Matrix


def iterations(settings: schema.Muon) -> int:
    """Of one matrix."""
    return sum(map(int, settings.newton_schulz.split("+")))


def flops(matrix: Matrix, count: int) -> int:
    """FLOPs of `count` iterations on a whole matrix, a multiply-add counted as two; projections that are fused apart.

    Of [m, n] with m <= n one is the m x m Gram matrix, its square, and their product with the matrix.
    """
    return count * sum(4 * m * m * n + 2 * m**3 for m, n in sides(matrix))


def sides(matrix: Matrix) -> list[tuple[int, int]]:
    """(shorter, longer) side of what is orthogonalised of a matrix."""
    parts = [matrix.groups * rows for rows in matrix.fused] or [matrix.out]
    return [(min(rows, matrix.into), max(rows, matrix.into)) for rows in parts]
