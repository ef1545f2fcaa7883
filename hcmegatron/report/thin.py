"""Fewer points for a drawing, and fewer rows for a table."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

MOST_POINTS = 1000
MOST_ROWS = 40


def drawn(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Which of the values to draw, ascending: of each of `most` / 2 spans of equal length the least and the greatest,
    so that no spike is lost, and a NaN where a span has one, so that a gap stays one.

    Args:
        values: [T].
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    spans = np.linspace(0, count, most // 2 + 1).astype(int)
    kept = {0, count - 1}
    for first, last in pairwise(spans):
        part = values[first:last]
        finite = np.isfinite(part)
        if finite.any():
            kept |= {first + int(np.nanargmin(part)), first + int(np.nanargmax(part))}
        if not finite.all():
            kept.add(first + int(np.argmin(finite)))
    return np.array(sorted(kept))


def chosen(count: int, most: int = MOST_ROWS) -> list[int]:
    """Of `count` rows at most `most`, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def words(count: int, most: int = MOST_POINTS) -> str:
    """How a line of so many points is drawn; nothing where all are."""
    if count <= most:
        return ""
    return (
        f"Of {count:,} steps, the least and the greatest value of each of {most // 2} spans are drawn; the CSV file "
        "has all."
    )
