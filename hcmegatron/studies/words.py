"""Numbers as a reader of a paper wants them: a mean with its interval and the seeds behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hcmegatron.studies.gaps import Gap, Interval
from hcmegatron.studies.results import Arm, Place, Results


def interval_words(value: Interval, form: str = "+.4f") -> str:
    """-0.0210 (-0.0250 to -0.0170); without an interval where there is none."""
    if not value.count:
        return "–"
    mean = f"{value.mean:{form}}"
    if not math.isfinite(value.low):
        return mean
    return f"{mean} ({value.low:{form}} to {value.high:{form}})"


def counted(number: int, what: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number} {what}{'s' * (number != 1)}"


def gap_cell(gap: Gap | None) -> str:
    """A gap in a table, with what is behind it."""
    if gap is None:
        return "–"
    lost = f", {gap.diverged} diverged" if gap.diverged else ""
    return f"{interval_words(gap.gap)}, {counted(gap.gap.count, 'seed')}{lost}"


def verdict(gap: Interval) -> str:
    """What an interval of a gap allows to say."""
    if not gap.count:
        return "no pair"
    if not math.isfinite(gap.low):
        return "no interval"
    if gap.decided:
        return "lower" if gap.mean < 0 else "higher"
    return "not told apart"


def last_gaps(results: Results, gaps: Sequence[Gap]) -> dict[str, dict[Arm, Gap]]:
    """Of every size with a pair, by size and arm: the gaps at the most tokens at which every arm of the size has been
    trained, or else the most."""
    found: dict[str, dict[Arm, Gap]] = {}
    for size in results.sizes:
        own = [gap for gap in gaps if gap.place.size == size]
        places: dict[Place, dict[Arm, Gap]] = {}
        for gap in own:
            places.setdefault(gap.place, {})[gap.arm] = gap
        if any(gap.gap.count for gap in own):
            best = max(places, key=lambda place: (len(places[place]), place.tokens))
            found[size] = places[best]
    return found


def place_words(place: Place) -> str:
    """A place, shortly."""
    others = [f"{name} {value}" for name, value in place.others]
    return ", ".join([f"size {place.size}", f"{short(place.tokens)} tokens", *others])


def short(number: float) -> str:
    """1.23M for 1234567; powers of ten where there is no letter."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if factor <= number < 1000 * factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.3g}"
