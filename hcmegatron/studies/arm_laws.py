"""Laws of a study's results: L(N, D) of every arm, and how much compute each arm saves beside the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hcmegatron.studies.fit import Fit, fit_law
from hcmegatron.studies.gaps import Interval
from hcmegatron.studies.laws import Array, Law, compute_law, loss_law, shared_law
from hcmegatron.studies.results import Arm, Place, Point, Results
from hcmegatron.studies.words import counted

FEWEST = 3  # sizes, and counts of tokens, that a law of both takes
BUDGETS = 4  # of compute that a law of it takes: it has three numbers
PLACES = 3  # of an arm that a law shares with others: it has two numbers of its own
FOLLOWED = 4  # starts of a fit
WIDEST = 10.0  # ratio of an interval's ends beyond which a factor is not known


class ArmLaw(NamedTuple):
    """A law of an arm's points.

    Attributes:
        intervals: of the law's numbers, [numbers, 2].
        unidentified: numbers that the points do not fix.
    """

    points: tuple[Point, ...]
    fit: Fit
    intervals: Array
    unidentified: tuple[str, ...]


class Multipliers(NamedTuple):
    """How many times an arm's compute the baseline needs for the same loss.

    Attributes:
        law: as a formula, and of which points.
        factors: of every arm with points enough but the baseline; without an interval where it spans more than
            WIDEST.
        drawn: what a bootstrap draws together.
    """

    law: str
    fit: Fit
    points: tuple[Point, ...]
    factors: dict[Arm, Interval]
    drawn: str


def finished_points(results: Results, arm: Arm, places: Sequence[Place] | None = None) -> tuple[Point, ...]:
    """The arm's points that have a loss, each place at its best learning rate."""
    chosen = results.places(arm) if places is None else places
    return tuple(point for place in chosen for point in results.best(arm, place) if point.finished)


def arm_law(points: Sequence[Point], bootstraps: int, level: float) -> ArmLaw | str:
    """L = E + A/N^alpha + B/D^beta of one arm's points, or why there is none."""
    sizes = len({point.place.size for point in points})
    counts = len({(point.place.tokens) for point in points})
    if sizes < FEWEST or counts < FEWEST:
        return f"{counted(sizes, 'size')} and {counted(counts, 'count')} of tokens; it takes {FEWEST} of each"
    law = loss_law(_column(points, "parameters"), _column(points, "tokens"))
    groups = [point.group for point in points]
    try:
        fit = fit_law(law, _column(points, "loss"), bootstraps, groups=groups, followed=FOLLOWED)
    except ValueError as error:
        return str(error)
    return ArmLaw(tuple(points), fit, fit.interval(level), tuple(fit.unidentified(level)))


def multipliers(
    results: Results, places: Sequence[Place], bootstraps: int, level: float
) -> Multipliers | str:
    """From the law of N and D that arms share, where the points fix it; or else from the law of compute, of the places
    where the baseline did best for its compute; or why from neither.

    Args:
        places: those places.
    """
    if results.baseline is None:
        return "there is no baseline"
    if len(results.arms) < 2:
        return "there is the baseline alone"
    found = _from_size_and_tokens(results, _comparable(results), bootstraps, level)
    if isinstance(found, Multipliers):
        return found
    budgets = len(places)
    if budgets < BUDGETS:
        return (
            f"of N and D: {found}; of compute: {counted(budgets, 'budget')} at which the baseline did best, and it "
            f"takes {BUDGETS}"
        )
    best = _comparable(results, places)
    names = [results.names[point.arm] for point in best]
    law = compute_law(_column(best, "flops"), names, results.names[results.baseline])
    of_compute = _factors(results, best, law, bootstraps, level)
    if isinstance(of_compute, str):
        return f"of N and D: {found}; of compute: {of_compute}"
    fit, drawn, factors = of_compute
    return Multipliers(
        "L = E + K/(m C)^gamma, where the baseline did best for its compute", fit, best, factors, drawn
    )


def _from_size_and_tokens(
    results: Results, points: tuple[Point, ...], bootstraps: int, level: float
) -> Multipliers | str:
    base = finished_points(results, results.baseline)
    sizes = len({point.place.size for point in base})
    counts = len({point.place.tokens for point in base})
    if sizes < FEWEST or counts < FEWEST:
        return (
            f"the baseline has {counted(sizes, 'size')} and {counted(counts, 'count')} of tokens, and it takes "
            f"{FEWEST} of each"
        )
    names = [results.names[point.arm] for point in points]
    law = shared_law(
        _column(points, "parameters"), _column(points, "tokens"), names, results.names[base[0].arm]
    )
    found = _factors(results, points, law, bootstraps, level)
    if isinstance(found, str):
        return found
    fit, drawn, factors = found
    return Multipliers("L = E + A/(m_N N)^alpha + B/(m_D D)^beta, m = m_N m_D", fit, points, factors, drawn)


def _factors(
    results: Results, points: tuple[Point, ...], law: Law, bootstraps: int, level: float
) -> tuple[Fit, str, dict[Arm, Interval]] | str:
    """The fit, what was drawn together, and the factors, each the product of the arm's numbers in the law."""
    pairs = [f"{point.place.size} {point.place.others} {point.seed}" for point in points]
    paired = len({*pairs}) >= law.rows.shape[2]
    groups = pairs if paired else [point.group for point in points]
    try:
        fit = fit_law(law, _column(points, "loss"), bootstraps, groups=groups, followed=FOLLOWED)
    except ValueError as error:
        return str(error)
    if free := fit.undetermined():
        return f"these points do not fix {', '.join(free)}"
    factors = {}
    edge = (1 - level) / 2
    for arm in results.arms:
        own = [point for point in points if point.arm == arm]
        if arm == results.baseline or not own:
            continue
        at = [position for position, name in enumerate(law.names) if name.endswith(f"[{results.names[arm]}]")]
        value = float(np.prod(fit.values[at]))
        low, high = np.quantile(np.prod(fit.draws[:, at], axis=1), [edge, 1 - edge]).tolist()
        known = high < WIDEST * low
        factors[arm] = Interval(value, low if known else np.nan, high if known else np.nan, len(own))
    return fit, "runs of one size and seed, of all arms" if paired else "points of one run", factors


def _comparable(results: Results, places: Sequence[Place] | None = None) -> tuple[Point, ...]:
    """Those of arms that have enough of them."""
    points = [finished_points(results, arm, places) for arm in results.arms]
    return tuple(point for own in points if len({p.place for p in own}) >= PLACES for point in own)


def _column(points: Sequence[Point], name: str) -> Array:
    return np.array([getattr(point, name) for point in points])
