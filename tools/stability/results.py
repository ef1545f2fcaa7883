"""Tables in Markdown and the figure, of the runs that are on record. matplotlib draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hcmegatron.report.files import COLOURS, MARKERS, SETTINGS
from tools.stability.rule import Plan, Record, Records, best_rate, beyond, grid


class Measure(NamedTuple):
    """A figure of a run: its name, its value, the format that shows it, and whether it is drawn on a logarithmic axis
    (None: not drawn)."""

    name: str
    of: Callable[[Record], float]
    shown: str
    log: bool | None = None


LOSS = Measure("held-out loss, nats a byte", lambda record: record.loss, "{:.3f}", False)
SPIKES = Measure("spikes", lambda record: record.spikes, "{:g}", False)
EXCESS = Measure("largest excess, nats", lambda record: record.excess, "{:.2f}")
FORWARD = Measure("largest forward gain", lambda record: record.forward[1], "{:.3g}", True)
BACKWARD = Measure("largest backward gain", lambda record: record.backward[1], "{:.3g}", True)
FORWARD_END = Measure("at the end", lambda record: record.forward[0], "{:.3g}")
BACKWARD_END = Measure("at the end", lambda record: record.backward[0], "{:.3g}")
TABLES = (LOSS, SPIKES, EXCESS), (FORWARD, FORWARD_END, BACKWARD, BACKWARD_END)


def tables(plan: Plan, records: Records) -> list[str]:
    """Lines: the grid, then losses and spikes, then gains."""
    said = _head("kind", *(f"{rate:g}" for rate in plan.rates), "best rate")
    for kind in plan.kinds:
        best = best_rate(plan, kind, records)
        losses = [_cell(LOSS, [records[run]]) if run in records else "" for run in grid(plan, kind)]
        edge = best is not None and best in (plan.rates[0], plan.rates[-1])
        said.append(_row(kind, *losses, "" if best is None else f"{best:g}{', the end of the grid' * edge}"))
    for measures in TABLES:
        said += [
            "",
            *_head("kind", "times best", "rate", "runs", "diverged", *(each.name for each in measures)),
        ]
        for kind in plan.kinds:
            for multiple in plan.multiples:
                runs = beyond(plan, kind, multiple, records)
                found = [records[run] for run in runs if run in records]
                rate = f"{runs[0].rate:g}" if runs else ""
                bad = sum(record.diverged for record in found)
                cells = [_cell(each, found) for each in measures]
                said.append(_row(kind, str(multiple), rate, str(len(found)), str(bad), *cells))
    return said


def figure(plan: Plan, records: Records, folder: Path) -> list[Path]:
    """stability.svg and stability.png: every run's value at each multiple of its kind's best rate, and lines through
    the medians. A value that is not finite is a cross at the upper edge."""
    drawn = [each for measures in TABLES for each in measures if each.log is not None]
    with matplotlib.rc_context(SETTINGS):
        made = Figure(figsize=(7.2, 5.4), layout="constrained")
        for axes, measure in zip(made.subplots(2, 2).flat, drawn, strict=True):
            _draw(axes, measure, plan, records)
        handles, names = made.axes[0].get_legend_handles_labels()
        made.legend(handles, names, loc="outside lower center", ncols=len(plan.kinds))
        files = [folder / f"stability.{ending}" for ending in ("svg", "png")]
        for file, metadata in zip(files, ({"Date": None}, {"Software": None}), strict=True):
            made.savefig(file, dpi=110, metadata=metadata)
    return files


def _draw(axes: Axes, measure: Measure, plan: Plan, records: Records) -> None:
    for place, kind in enumerate(plan.kinds):
        style: dict[str, Any] = {"color": COLOURS[place], "markersize": 4}
        shift = 0.12 * (place - (len(plan.kinds) - 1) / 2)
        middles = []
        for at, multiple in enumerate(plan.multiples):
            runs = [run for run in beyond(plan, kind, multiple, records) if run in records]
            values = [measure.of(records[run]) for run in runs]
            finite = [value for value in values if math.isfinite(value)]
            axes.plot([at + shift] * len(finite), finite, MARKERS[place], alpha=0.5, **style)
            lost = len(values) - len(finite)
            axes.plot([at + shift] * lost, [0.97] * lost, "x", transform=axes.get_xaxis_transform(), **style)
            middle = median(values) if values else math.nan
            middles.append(middle if math.isfinite(middle) else math.nan)
        places = [at + shift for at in range(len(plan.multiples))]
        axes.plot(places, middles, marker=MARKERS[place], label=kind, **style)
    axes.set_xticks(range(len(plan.multiples)), [f"{multiple}x" for multiple in plan.multiples])
    axes.set_title(measure.name)
    if measure.log and axes.dataLim.minposy < math.inf:  # which it is where nothing is drawn yet
        axes.set_yscale("log")
    if measure is SPIKES:
        axes.set_ylim(bottom=-0.5)
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("times the best learning rate")


def _cell(measure: Measure, records: list[Record]) -> str:
    """Median and, of several, the lowest and the highest."""
    if not records:
        return ""
    values = sorted(measure.of(record) for record in records)
    low, middle, high = (measure.shown.format(each) for each in (values[0], median(values), values[-1]))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def _head(*names: str) -> list[str]:
    return [_row(*names), "|---" * len(names) + "|"]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
