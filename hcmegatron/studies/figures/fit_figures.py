"""The figures of `study fit --plot`: of any table, whatever its columns are called."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hcmegatron.report.files import COLOURS
from hcmegatron.studies.figures.isoflop_figure import Losses, isoflop
from hcmegatron.studies.figures.law_figures import FORMULA, Residuals, residual_plot
from hcmegatron.studies.figures.plot import Plot, Style
from hcmegatron.studies.figures.styles import kind_styles
from hcmegatron.studies.laws import Array

COMPUTE = "L = E + K/(m C)^gamma"


def fit_plots(
    residuals: Sequence[Residuals],
    compute: Array,
    parameters: Array,
    losses: Array,
    kinds: NDArray[np.str_] | None,
    unit: str,
) -> list[Plot]:
    """Residuals of the laws, of the law of compute where there are kinds, and iso-FLOP profiles where there are any.

    Args:
        residuals: of the laws of N and D by kind, and of the law of compute, which is called COMPUTE.
        compute, parameters, losses: C, N and loss of all runs, [runs]; kinds: [runs], or none; unit: of losses.
    """
    names = np.full(len(losses), "all runs") if kinds is None else kinds
    looks = {"all runs": Style(COLOURS[0])} if kinds is None else kind_styles(names.tolist())
    rows = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    own = [(part, looks[part.name]) for part in residuals if part.name != COMPUTE]
    plots = [residual_plot("residuals", f"Residuals of {FORMULA}", own, unit)] if own else []
    for part in residuals:
        if part.name == COMPUTE:
            shared = [_rows(part, name, of, looks) for name, of in rows.items()]
            plots.append(residual_plot("residuals-compute", f"Residuals of {COMPUTE}", shared, unit))
    parts = [Losses(name, looks[name], compute[of], parameters[of], losses[of]) for name, of in rows.items()]
    return plots + [part for part in isoflop(parts, unit) if isinstance(part, Plot)]


def _rows(
    part: Residuals, name: str, of: NDArray[np.intp], looks: dict[str, Style]
) -> tuple[Residuals, Style]:
    """Those of one kind."""
    return Residuals(name, *(column[of] for column in part[1:])), looks[name]
