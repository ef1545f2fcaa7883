"""Laws beside the points that they are of: losses over tokens by size, compute multipliers, residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hcmegatron.report.charts import Table
from hcmegatron.studies.arm_laws import PLACES, ArmLaw, Multipliers
from hcmegatron.studies.figures.plot import Panel, Plot, Series, Style, row_series
from hcmegatron.studies.fit import Fit
from hcmegatron.studies.gaps import Interval
from hcmegatron.studies.laws import Array
from hcmegatron.studies.results import Arm, Point, Results
from hcmegatron.studies.words import interval_words

FORMULA = "L = E + A/N^alpha + B/D^beta"
_Styles = Mapping[Arm, Style]


class Residuals(NamedTuple):
    """What a law leaves of its runs.

    Attributes:
        parameters, tokens, predicted: N, D, and the law's loss, [runs].
        residuals: log loss less the law's, [runs].
    """

    name: str
    parameters: Array
    tokens: Array
    predicted: Array
    residuals: Array


def residuals_of(name: str, parameters: Array, tokens: Array, fit: Fit) -> Residuals:
    """Those of a fit, whose runs have these N and D."""
    return Residuals(name, parameters, tokens, np.exp(fit.law.log_loss(fit.theta)[0]), fit.residuals)


def law_table(results: Results, laws: Mapping[Arm, ArmLaw], level: float) -> Table:
    """The numbers of every law, with their intervals, and which of them the points do not fix."""
    rows = tuple(
        (
            results.names[arm],
            str(len(law.points)),
            *(
                f"{value:.4g} ({low:.4g} to {high:.4g})"
                for value, (low, high) in zip(law.fit.values, law.intervals, strict=True)
            ),
            f"{np.median(np.abs(law.fit.residuals)):.2g}",
            ", ".join(law.unidentified) or "–",
        )
        for arm, law in laws.items()
    )
    head = ("arm", "points", "E", "A", "B", "alpha", "beta", "median |log residual|", "not fixed")
    return Table(f"{FORMULA}, {level:.0%} intervals", head, rows)


def law_plot(results: Results, laws: Mapping[Arm, ArmLaw], styles: _Styles) -> Plot:
    """A panel for every arm: losses over tokens, a curve of the law for every size, within what was run."""
    panels = []
    for arm, law in laws.items():
        series: list[Series] = []
        for number, size in enumerate(results.sizes):
            own = [point for point in law.points if point.place.size == size]
            if own:
                shade = 0.35 + 0.65 * (number + 1) / len(results.sizes)
                series += _size(
                    law.fit, own, f"size {size}", styles[arm]._replace(variant=number, shade=shade)
                )
        panels.append(
            Panel(results.names[arm], "tokens", f"held-out loss, {results.unit}", tuple(series), "xy")
        )
    note = f"Points are runs, curves the fitted {FORMULA} of each arm, drawn where it was run and no further."
    return Plot("laws", "Laws of the loss", tuple(panels), note)


def _size(fit: Fit, points: Sequence[Point], name: str, style: Style) -> list[Series]:
    tokens, losses = (np.array([getattr(point, field) for point in points]) for field in ("tokens", "loss"))
    runs = tuple(point.run for point in points)
    along = np.geomspace(tokens.min(), tokens.max(), 40)
    mean = float(np.mean([point.parameters for point in points]))
    e, a, b, alpha, beta = fit.values
    curve = e + a / mean**alpha + b / along**beta
    return [
        Series(name, tokens, losses, style, "points", notes=runs),
        Series(f"{name}: law", along, curve, style, "line", legend=False),
    ]


def multiplier_plot(results: Results, found: Multipliers, styles: _Styles, level: float) -> Plot:
    """How much compute each arm saves: a row for each."""
    names = tuple(results.names[arm] for arm in found.factors)
    series = tuple(
        row_series(names[row], row, factor, styles[arm])
        for row, (arm, factor) in enumerate(found.factors.items())
    )
    base = results.names[results.baseline] if results.baseline else ""
    panel = Panel(
        "", f"times the compute that {base} needs for the same loss", "", series, "x", 1.0, rows=names
    )
    note = (
        f"{found.law}; {level:.0%} intervals over bootstraps that draw {found.drawn} together. Above 1 is better. "
        f"Compute is {results.flops_column}."
    )
    return Plot("multipliers", "Compute multiplier of each connection", (panel,), note)


def multiplier_table(results: Results, found: Multipliers, level: float) -> Table:
    """The same in numbers, with those that they are products of."""
    rows = []
    for arm, factor in found.factors.items():
        name = results.names[arm]
        parts = [
            f"{number} = {value:.3g}"
            for number, value in zip(found.fit.law.names, found.fit.values, strict=True)
            if number.endswith(f"[{name}]") and number.startswith("m_")
        ]
        rows.append((name, str(factor.count), multiplier_words(factor), ", ".join(parts) or "–"))
    rows += [
        (results.names[arm], "", f"none: it takes finished runs at {PLACES} places", "–")
        for arm in results.arms
        if arm not in found.factors and arm != results.baseline
    ]
    title = (
        f"Compute multiplier over {results.names[results.baseline] if results.baseline else ''}: {found.law}"
    )
    return Table(title, ("arm", "points", f"m ({level:.0%} interval)", "of which"), tuple(rows))


def multiplier_words(factor: Interval) -> str:
    """1.25 (1.12 to 1.40), or that it is not known."""
    unknown = "" if np.isfinite(factor.low) else ", not fixed: its interval spans more than a factor of ten"
    return interval_words(factor, ".3f") + unknown


def residual_plot(name: str, title: str, parts: Sequence[tuple[Residuals, Style]], unit: str) -> Plot:
    """Residuals of log loss over N, over D and over the prediction: a law that fits leaves no shape in them.

    Args:
        parts: of every law, or of every kind in one, with its style.
        unit: of losses.
    """
    panels = []
    for axis, words in enumerate(("parameters", "tokens", f"predicted loss, {unit}")):
        series = tuple(
            Series(
                part.name,
                (part.parameters, part.tokens, part.predicted)[axis],
                part.residuals,
                style,
                "points",
            )
            for part, style in parts
        )
        panels.append(Panel("", words, "log loss less the law's", series, "x", 0.0))
    note = "Above zero a run is worse than its law; trends are what the law misses."
    return Plot(name, title, tuple(panels), note)
