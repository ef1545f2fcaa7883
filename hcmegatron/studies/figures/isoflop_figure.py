"""Iso-FLOP profiles (Hoffmann et al., 2203.15556, Fig. 3): losses over sizes at one compute, the parabolas through
them, and their least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hcmegatron.report.charts import Table
from hcmegatron.studies.figures.plot import NotDrawn, Panel, Plot, Series, Style
from hcmegatron.studies.isoflop import budgets, growth, parabola, profiles
from hcmegatron.studies.laws import Array

TITLE = "Iso-FLOP profiles"
MOST = 8  # budgets that are drawn: markers, and shades that can be told apart


class Losses(NamedTuple):
    """What profiles are of: C, N and loss of every run, [runs], under a name."""

    name: str
    style: Style
    compute: Array
    parameters: Array
    loss: Array


def isoflop(parts: Sequence[Losses], unit: str) -> list[Table | Plot | NotDrawn]:
    """A panel for each part with a budget that three sizes were trained with."""
    panels, rows, left_out = [], [], 0
    for part in parts:
        found = budgets(part.compute, part.parameters)
        if not found:
            continue
        series: list[Series] = []
        shown = sorted(sorted(range(len(found)), key=lambda i: -len(found[i]))[:MOST])
        left_out += len(found) - len(shown)
        for number, own in enumerate(found[i] for i in shown):
            shade = 0.3 + 0.7 * (number + 1) / len(shown)
            series += _budget(part, own, part.style._replace(variant=number, shade=shade))
        panels.append(Panel(part.name, "parameters", f"held-out loss, {unit}", tuple(series), "x"))
        known = profiles(part.compute, part.parameters, part.loss)
        grown = growth(known)
        for profile in known:
            least = (
                ("not within the sizes", "–")
                if profile.parameters is None
                else (f"{profile.parameters:.4g}", f"{profile.loss:.4f}")
            )
            exponent = "–" if grown is None else f"{grown[0]:.3f}"
            rows.append((part.name, f"{profile.compute:.3g}", str(profile.runs), *least, exponent))
    if not panels:
        return [NotDrawn(TITLE, "no compute was trained with in three sizes")]
    head = ("arm", "FLOPs", "runs", "best N", "loss there", "best N grows as C^")
    note = "A parabola in log N through the runs of every budget; a star is its least, where that is within the sizes."
    if left_out:
        note += f" Of each arm's budgets the {MOST} with the most runs are drawn; {left_out} are not."
    return [Table(TITLE, head, tuple(rows)), Plot("isoflop", TITLE, tuple(panels), note)]


def _budget(part: Losses, own: Array, style: Style) -> list[Series]:
    sizes, losses = part.parameters[own], part.loss[own]
    curve = parabola(sizes, losses)
    along = np.geomspace(sizes.min(), sizes.max(), 60)
    name = f"{np.exp(np.log(part.compute[own]).mean()):.2g} FLOPs"
    least = curve.least()
    return [
        Series(name, sizes, losses, style, "points"),
        Series(f"{name}: parabola", along, curve(along), style, "line", legend=False),
        *(
            [
                Series(
                    f"{name}: least", np.array([least[0]]), np.array([least[1]]), style, "star", legend=False
                )
            ]
            if least
            else []
        ),
    ]
