"""What is said and drawn of laws, with a warning where points do not fix them, and a reason where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hcmegatron.report.charts import Words
from hcmegatron.studies.arm_laws import ArmLaw, Multipliers, arm_law, finished_points
from hcmegatron.studies.figures.isoflop_figure import Losses, isoflop
from hcmegatron.studies.figures.law_figures import (
    FORMULA,
    law_plot,
    law_table,
    multiplier_plot,
    multiplier_table,
    residual_plot,
    residuals_of,
)
from hcmegatron.studies.figures.plot import NotDrawn, Part, Style
from hcmegatron.studies.results import Arm, Point, Results


def law_parts(
    results: Results, shares: Multipliers | str, looks: Mapping[Arm, Style], bootstraps: int, level: float
) -> tuple[Part, ...]:
    """Compute multipliers, the law of every arm with its residuals, iso-FLOP profiles.

    Args:
        shares: the multipliers, or why there are none.
    """
    points = {arm: finished_points(results, arm) for arm in results.arms}
    tried = {arm: arm_law(points[arm], bootstraps, level) for arm in results.arms}
    laws = {arm: law for arm, law in tried.items() if isinstance(law, ArmLaw)}
    parts: list[Part] = []
    if isinstance(shares, Multipliers):
        parts += [multiplier_table(results, shares, level), multiplier_plot(results, shares, looks, level)]
    else:
        parts.append(NotDrawn("Compute multipliers", shares))
    parts += [
        NotDrawn(f"{FORMULA} of {results.names[arm]}", law)
        for arm, law in tried.items()
        if isinstance(law, str)
    ]
    if laws:
        warned = tuple(
            f"{results.names[arm]}: warning: its runs do not fix {', '.join(law.unidentified)}. Between its runs the "
            "law holds; those numbers alone say nothing. Vary N and D apart, over more than a factor of ten each."
            for arm, law in laws.items()
            if law.unidentified
        )
        shown = [
            (
                residuals_of(
                    results.names[arm], _of(law.points, "parameters"), _of(law.points, "tokens"), law.fit
                ),
                looks[arm],
            )
            for arm, law in laws.items()
        ]
        residuals = residual_plot("residuals", f"Residuals of {FORMULA}", shown, results.unit)
        parts += [law_table(results, laws, level), Words(warned), law_plot(results, laws, looks), residuals]
    losses = [
        Losses(results.names[arm], looks[arm], *(_of(own, name) for name in ("flops", "parameters", "loss")))
        for arm, own in points.items()
        if own
    ]
    return (*parts, *isoflop(losses, results.unit))


def _of(points: Sequence[Point], name: str) -> np.ndarray:
    return np.array([getattr(point, name) for point in points])
