"""Gaps of the loss to the baseline, run by run of the same seed: what two runs share (data order, held-out text, the
shared weights' initialisation) is not in their difference, which spreads by less than either loss.

Intervals are Student's t over seeds. A bootstrap over three or five seeds would be too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from hcmegatron.studies.results import Arm, Place, Point, Results


class Interval(NamedTuple):
    """A mean and its interval; nan where there are too few values for one."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def decided(self) -> bool:
        """Whether it has ends, and zero is not between them."""
        return self.low > 0 or self.high < 0


class Gap(NamedTuple):
    """An arm beside the baseline at one place.

    Attributes:
        compute: C of the baseline there, FLOPs, the mean of its runs; of the arm where the baseline has none.
        gap: the arm's loss less the baseline's, nats, over the pairs.
        ratio: the one divided by the other, the interval taken of its log.
        unpaired: runs of either that finished and have no partner of their seed that did.
        diverged: runs of the arm that did; they have no gap, and are counted.
    """

    arm: Arm
    place: Place
    compute: float
    gap: Interval
    ratio: Interval
    unpaired: int
    diverged: int


def t_interval(values: Sequence[float], level: float) -> Interval:
    """Of the mean of independent values: mean +- t sqrt(s^2 / n), s^2 with n - 1; ends are nan below two values."""
    count = len(values)
    if not count:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(np.mean(values))
    if count == 1:
        return Interval(mean, np.nan, np.nan, 1)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * float(np.std(values, ddof=1)) / count**0.5
    return Interval(mean, mean - half, mean + half, count)


def paired_gaps(results: Results, level: float) -> tuple[Gap, ...]:
    """Of every arm but the baseline, at every place that both have been trained at, each at its best learning rate."""
    if results.baseline is None:
        return ()
    base = {place: results.best(results.baseline, place) for place in results.places(results.baseline)}
    return tuple(
        _gap(results.best(arm, place), base[place], level)
        for arm in results.arms
        if arm != results.baseline
        for place in results.places(arm)
        if place in base
    )


def _gap(own: Sequence[Point], base: Sequence[Point], level: float) -> Gap:
    losses = [{point.seed: point.loss for point in points if point.finished} for points in (own, base)]
    shared = [seed for seed in losses[0] if seed in losses[1]]
    pairs = np.array([(losses[0][seed], losses[1][seed]) for seed in shared]).reshape(-1, 2)
    logs = t_interval(np.log(pairs[:, 0] / pairs[:, 1]), level)
    flops = [point.flops for point in base] or [point.flops for point in own]
    return Gap(
        own[0].arm,
        own[0].place,
        float(np.mean(flops)),
        t_interval(pairs[:, 0] - pairs[:, 1], level),
        Interval(*np.exp(logs[:3]).tolist(), logs.count),
        len(losses[0].keys() ^ losses[1].keys()),
        sum(point.diverged for point in own),
    )


def frontier(gaps: Sequence[Gap], results: Results) -> list[Place]:
    """The places at which the baseline did best for its compute, in the order of compute: none with less compute, or as
    much, has a lower mean loss."""
    losses = {
        place: np.mean([point.loss for point in results.best(results.baseline, place) if point.finished])
        for place in {gap.place for gap in gaps if gap.gap.count}
    }
    compute = {gap.place: gap.compute for gap in gaps}
    kept: list[Place] = []
    for place in sorted(losses, key=lambda place: (compute[place], losses[place])):
        if not kept or losses[place] < losses[kept[-1]]:
            kept.append(place)
    return kept
