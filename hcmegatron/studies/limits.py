"""What a study does not show, in sentences made from its numbers: nothing is claimed beyond an interval."""

from __future__ import annotations

from collections.abc import Sequence

from hcmegatron.studies.gaps import Gap
from hcmegatron.studies.results import Arm, Results


def limits(results: Results, gaps: Sequence[Gap], missing: Sequence[str], level: float) -> tuple[str, ...]:
    """The sentences.

    Args:
        missing: titles of figures that are not drawn.
    """
    said = [
        *_seeds(results),
        *_intervals(results, gaps, level),
        *_rates(results),
        *_losses(results, gaps),
        *_range(results),
    ]
    if missing:
        said.append(f"Not drawn, for reasons that stand above: {'; '.join(missing)}.")
    return tuple(said)


def _seeds(results: Results) -> list[str]:
    seeds = sorted(
        {len({p.seed for p in results.best(a, place)}) for a in results.arms for place in results.places(a)}
    )
    if "seed" not in results.columns:
        return [
            "The table has no column seed: every run counts as the only one of its kind, and no gap has an interval."
        ]
    said = [f"Seeds of an arm at one place: {seeds[0]}" + (f" to {seeds[-1]}." if len(seeds) > 1 else ".")]
    if seeds[0] < 2:
        said.append("Where there is one seed there is no interval, and a gap there may be the seed's.")
    if 2 in seeds:
        said.append("With two seeds an interval has one degree of freedom: it is wide, and rightly so.")
    return said


def _intervals(results: Results, gaps: Sequence[Gap], level: float) -> list[str]:
    known = [gap for gap in gaps if gap.gap.count > 1]
    if not known:
        return ["No gap to the baseline has an interval: the study tells no two arms apart."]
    said = []
    open_ = [gap for gap in known if not gap.gap.decided]
    for arm in dict.fromkeys(gap.arm for gap in open_):
        places = sum(gap.arm == arm for gap in open_)
        every = sum(gap.arm == arm for gap in known)
        said.append(
            f"{results.names[arm]} and {results.names[_baseline(results)]} are not told apart at {places} of {every} "
            "places: the interval of the gap contains zero."
        )
    chance = len(known) * (1 - level)
    said.append(
        f"{len(known)} intervals at {level:.0%}: were no arm different from the baseline, about {chance:.1f} of them "
        "would still leave zero out."
    )
    return said


def _baseline(results: Results) -> Arm:
    """The baseline, where gaps are known."""
    assert results.baseline is not None
    return results.baseline


def _rates(results: Results) -> list[str]:
    chosen = any(len(results.rates(arm, place)) > 1 for arm in results.arms for place in results.places(arm))
    words = (
        "Best learning rates were chosen by the losses that are compared: an arm with more rates, or with more noise, "
        "gains a little by the choice, and intervals do not know of it."
    )
    return [words] if chosen else []


def _losses(results: Results, gaps: Sequence[Gap]) -> list[str]:
    diverged = sum(point.diverged for point in results.points)
    unfinished = sum(not point.finished and not point.diverged for point in results.points)
    unpaired = sum(gap.unpaired for gap in gaps)
    said = [
        f"{diverged} of {len(results.points)} points are of runs that diverged. They are counted in every table, and "
        "are in no mean: a mean of those that did not says what happens where it goes well."
        if diverged
        else "No run diverged."
        if "diverged" in results.columns
        else "The table has no column diverged: runs without a loss may have diverged."
    ]
    if unfinished:
        said.append(
            f"{unfinished} points have no loss and did not diverge: they are not finished, and in no mean."
        )
    if results.left_out:
        said.append(f"{results.left_out} rows have no parameters or tokens, and are left out.")
    if unpaired:
        said.append(f"{unpaired} finished points have no finished partner of their seed, and are in no gap.")
    return said


def _range(results: Results) -> list[str]:
    sizes, tokens = ([getattr(p, name) for p in results.points] for name in ("parameters", "tokens"))
    low, high = min(sizes), max(sizes)
    return [
        f"Sizes are {low:.3g} to {high:.3g} parameters on {min(tokens):.3g} to {max(tokens):.3g} tokens. Nothing here "
        "is of larger ones: curves are drawn where runs are, and no further.",
        "Held-out loss is all that is compared: not downstream tasks, not the time of a step.",
    ]
