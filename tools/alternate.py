"""Comparing things on a machine whose clock drifts: alternating in one run, medians, ratios pair by pair."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


def alternating(
    candidates: dict[str, Callable[[], object]], rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call of every candidate, called in turn A B C A B C ..."""
    for _ in range(warmup):
        for run in candidates.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(_seconds(run))
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Median of the ratios of neighbouring runs."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


class Beside(NamedTuple):
    """Of one candidate: seconds of every call, and what they were of the reference's beside it."""

    seconds: list[float]
    ratios: list[float]


def beside(
    reference: Callable[[], object],
    candidates: dict[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
) -> tuple[list[float], dict[str, Beside]]:
    """Seconds of every call of the reference, and of the candidates': R A R B R C R A R B R C R ... A candidate's ratio
    is to the mean of the reference's calls before and after it, so that a clock that drifts evenly drops out."""
    for _ in range(warmup):
        reference()
        for run in candidates.values():
            run()
    found = {name: Beside([], []) for name in candidates}
    references = [_seconds(reference)]
    for _ in range(rounds):
        for name, run in candidates.items():
            seconds = _seconds(run)
            references.append(_seconds(reference))
            found[name].seconds.append(seconds)
            found[name].ratios.append(2 * seconds / sum(references[-2:]))
    return references, found


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
