"""Learning rates at multiples of each arm's best: losses, spikes, and runs that diverged. At 2 and 4 times the best
rate small models show the instabilities of large ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hcmegatron.report.charts import Table
from hcmegatron.studies.figures.plot import NotDrawn, Panel, Plot, Series, Style, lost_series
from hcmegatron.studies.gaps import Interval, t_interval
from hcmegatron.studies.results import Arm, Place, Results
from hcmegatron.studies.words import interval_words, place_words

TITLE = "Stress: multiples of the best learning rate"


class Rate(NamedTuple):
    """The runs of an arm at one learning rate.

    Attributes:
        times: the rate as a multiple of the arm's best.
        loss: of those that finished; spikes: of all, the mean a run.
    """

    arm: Arm
    place: Place
    rate: float
    times: float
    runs: int
    diverged: int
    loss: Interval
    spikes: Interval


def stressed(results: Results, level: float) -> list[Rate]:
    """Of every arm where it was trained at several rates, ascending; at the most tokens of its size."""
    found = []
    for arm in results.arms:
        several = [place for place in results.places(arm) if len(results.rates(arm, place)) > 1]
        for size in dict.fromkeys(place.size for place in several):
            place = max((place for place in several if place.size == size), key=lambda place: place.tokens)
            best = results.best(arm, place)[0].rate
            for rate, points in results.rates(arm, place).items():
                spikes = [point.spikes for point in points if np.isfinite(point.spikes)]
                losses = [point.loss for point in points if point.finished]
                diverged = sum(point.diverged for point in points)
                loss = t_interval(losses, level)
                times = rate / best
                found.append(
                    Rate(arm, place, rate, times, len(points), diverged, loss, t_interval(spikes, level))
                )
    return found


def stress(
    results: Results, found: Sequence[Rate], styles: Mapping[Arm, Style], level: float
) -> list[Table | Plot | NotDrawn]:
    """The table, and of the largest size a figure: losses, spikes, diverged runs."""
    if not found:
        return [NotDrawn(TITLE, "no arm was trained at two learning rates")]
    rows = tuple(
        (
            results.names[each.arm],
            place_words(each.place),
            f"{each.rate:.3g}",
            f"{each.times:.3g}",
            str(each.runs),
            str(each.diverged),
            interval_words(each.loss, ".4f"),
            interval_words(each.spikes, ".2f") if each.spikes.count else "not counted",
        )
        for each in found
    )
    head = (
        "arm",
        "place",
        "rate",
        "times best",
        "runs",
        "diverged",
        "loss of those that finished",
        "spikes a run",
    )
    size = max((each.place.size for each in found), key=results.sizes.index)
    shown = [each for each in found if each.place.size == size]
    panels = [_panel(results, shown, styles, "loss", f"held-out loss, {results.unit}")]
    if any(each.spikes.count for each in shown):
        panels.append(_panel(results, shown, styles, "spikes", "spikes a run"))
    panels.append(_diverged(results, shown, styles))
    note = (
        f"Size {size}. An arm's best rate has the fewest runs that did not finish, and of those the least mean loss. "
        f"{level:.0%} t-intervals over seeds. Crosses: so many runs diverged, and are in no loss."
    )
    return [Table(TITLE, head, rows), Plot("stress", TITLE, tuple(panels), note)]


def _panel(
    results: Results, shown: Sequence[Rate], styles: Mapping[Arm, Style], what: str, words: str
) -> Panel:
    series = []
    for arm in dict.fromkeys(each.arm for each in shown):
        own = [each for each in shown if each.arm == arm]
        some = [each for each in own if getattr(each, what).count]
        means, lows, highs = (np.array([getattr(each, what)[part] for each in some]) for part in range(3))
        counts = tuple(getattr(each, what).count for each in some)
        times = np.array([each.times for each in some])
        series.append(Series(results.names[arm], times, means, styles[arm], "marked", lows, highs, counts))
        lost = np.array([each.diverged for each in own])
        if what == "loss" and lost.any():
            series.append(
                lost_series(results.names[arm], np.array([each.times for each in own]), lost, styles[arm])
            )
    bottom = 0.0 if what == "spikes" else None
    return Panel("", "times the best rate", words, tuple(series), "x", None, _ticks(shown), True, bottom)


def _diverged(results: Results, shown: Sequence[Rate], styles: Mapping[Arm, Style]) -> Panel:
    series = []
    for arm in dict.fromkeys(each.arm for each in shown):
        own = [each for each in shown if each.arm == arm]
        times, shares = (
            np.array(part) for part in zip(*((r.times, r.diverged / r.runs) for r in own), strict=True)
        )
        notes = tuple(f"{each.diverged} of {each.runs}" for each in own)
        counts = tuple(each.runs for each in own)
        series.append(Series(results.names[arm], times, shares, styles[arm], counts=counts, notes=notes))
    words = "share of runs that diverged"
    return Panel("", "times the best rate", words, tuple(series), "x", None, _ticks(shown), True, 0.0)


def _ticks(shown: Sequence[Rate]) -> tuple[tuple[float, str], ...]:
    return tuple((times, f"{times:.3g}x") for times in sorted({round(each.times, 6) for each in shown}))
