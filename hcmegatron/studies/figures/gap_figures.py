"""The gap of the loss to the baseline: over training (mHC, 2512.24880, Fig. 5), over compute (Fig. 6a), and as a ratio
over tokens (Fig. 6b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hcmegatron.studies.figures.plot import NotDrawn, Panel, Plot, Series, Style, lost_series
from hcmegatron.studies.gaps import Gap, Interval, frontier
from hcmegatron.studies.power import PowerLaw
from hcmegatron.studies.results import Arm, Results
from hcmegatron.studies.trajectories import Trajectory
from hcmegatron.studies.words import place_words

PANELS = 3  # of sizes: the largest
_Styles = Mapping[Arm, Style]


def over_training(results: Results, found: Sequence[Trajectory], styles: _Styles, level: float) -> Plot:
    """A panel for every size, a line for every arm."""
    panels = []
    for place in dict.fromkeys(each.place for each in found):
        series = []
        for each in (each for each in found if each.place == place):
            means, lows, highs, counts = (np.array(part) for part in zip(*each.gaps, strict=True))
            name, style = results.names[each.arm], styles[each.arm]
            series.append(Series(name, each.steps, means, style, "band", lows, highs, tuple(counts.tolist())))
        panels.append(Panel(place_words(place), "step", "loss gap, nats a token", tuple(series), reference=0))
    return Plot(
        "gap-training",
        "Loss gap to the baseline over training",
        tuple(panels),
        "Training losses, smoothed over a fiftieth of the steps, run by run of the same seed; areas are "
        f"{level:.0%} t-intervals over seeds, and one seed has none. Curves of runs that diverged end where their loss "
        "does.",
    )


def over_compute(
    results: Results, gaps: Sequence[Gap], laws: Mapping[Arm, PowerLaw], styles: _Styles, level: float
) -> Plot | NotDrawn:
    """Of the places where the baseline did best for its compute."""
    title = "Loss gap to the baseline over compute"
    places = frontier(gaps, results)
    if len(places) < 2:
        return NotDrawn(title, f"it takes two budgets of compute with pairs of runs; there are {len(places)}")
    kept = [gap for gap in gaps if gap.place in places]
    series = _by_arm(results, kept, styles, lambda gap: gap.compute, lambda gap: gap.gap)
    lined = {results.names[arm] for arm in laws}
    series = [replace(one, look="points") if one.name in lined else one for one in series]
    for arm, law in laws.items():
        x = np.geomspace(min(law.compute), max(law.compute), 50)
        name = f"{results.names[arm]}: power law"
        series.append(Series(name, x, law(x), styles[arm], "line", legend=False))
    words = f"training FLOPs of the baseline ({results.flops_column})"
    panel = Panel("", words, f"loss gap, {results.unit}", tuple(series), "x", reference=0, dodge=True)
    return Plot(
        "gap-compute",
        title,
        (panel,),
        f"Held-out losses of runs of the same seed, {level:.0%} t-intervals over seeds, where the baseline did best "
        "for its compute (none of its runs with less compute has a lower loss). Crosses: so many runs diverged, and "
        "have no gap. Curves are power laws "
        "of the gap, where there are any. Points stand a little beside each other; the CSV file has where they are.",
    )


def over_tokens(results: Results, gaps: Sequence[Gap], styles: _Styles, level: float) -> Plot | NotDrawn:
    """Of the largest size that was trained on two counts of tokens or more."""
    title = "Loss as a ratio to the baseline's over tokens"
    held = {size: _tokens(gaps, size) for size in results.sizes}
    size = next((size for size in reversed(results.sizes) if len(held[size]) > 1), None)
    if size is None:
        return NotDrawn(title, "it takes a size with pairs of runs at two counts of tokens; there is none")
    kept = [gap for gap in gaps if gap.place.size == size]
    series = _by_arm(results, kept, styles, lambda gap: gap.place.tokens, lambda gap: gap.ratio)
    panel = Panel(
        f"size {size}", "tokens", "loss / loss of the baseline", tuple(series), "x", reference=1, dodge=True
    )
    return Plot(
        "ratio-tokens",
        title,
        (panel,),
        f"Held-out losses of runs of the same seed, {level:.0%} t-intervals of the log ratio over seeds. Points of one "
        "run at several counts of tokens are not independent.",
    )


def _tokens(gaps: Sequence[Gap], size: str) -> set[float]:
    return {gap.place.tokens for gap in gaps if gap.place.size == size and gap.gap.count}


def _by_arm(
    results: Results,
    gaps: Sequence[Gap],
    styles: _Styles,
    over: Callable[[Gap], float],
    value: Callable[[Gap], Interval],
) -> list[Series]:
    """A series for every arm, and one for its runs that diverged."""
    found = []
    for arm in results.arms:
        own = sorted((gap for gap in gaps if gap.arm == arm), key=over)
        x = np.array([over(gap) for gap in own])
        if own and any(gap.gap.count for gap in own):
            means, lows, highs, counts = (np.array(part) for part in zip(*map(value, own), strict=True))
            notes = tuple(place_words(gap.place) for gap in own)
            found.append(
                Series(
                    results.names[arm],
                    x,
                    means,
                    styles[arm],
                    "marked",
                    lows,
                    highs,
                    tuple(counts.tolist()),
                    notes,
                )
            )
        lost = np.array([gap.diverged for gap in own])
        if lost.any():
            found.append(lost_series(results.names[arm], x, lost, styles[arm]))
    return found
