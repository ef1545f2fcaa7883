"""A figure's data, drawn by matplotlib: SVG and PNG for papers, black on white."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.report.files import DASHES, MARKERS, SETTINGS
from hcmegatron.studies.figures.plot import Panel, Plot, Series
from hcmegatron.studies.words import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

ACROSS = 3  # panels beside each other
_EDGE = 0.96  # of the axes' height: where runs that diverged are
_DPI = 150
_NARROW = 30  # ratio of the ends of a logarithmic axis
_APART = 3.0  # points, of series that are drawn beside each other


def write(plots: Sequence[Plot], folder: Path, option: str = "--out") -> dict[str, str]:
    """NAME.svg, NAME.png and NAME.csv of every figure.

    Args:
        option: that named the folder, for errors.

    Returns:
        the SVG text of each, by name.

    Raises:
        ConfigError: the folder cannot be written.
    """
    import matplotlib

    drawn = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(SETTINGS):
            for plot in plots:
                figure = draw(plot)
                svg = io.StringIO()
                figure.savefig(svg, format="svg", metadata={"Date": None})
                drawn[plot.name] = svg.getvalue()
                (folder / f"{plot.name}.svg").write_text(drawn[plot.name], encoding="utf-8")
                (folder / f"{plot.name}.csv").write_text(plot.csv(), encoding="utf-8")
                figure.savefig(folder / f"{plot.name}.png", dpi=_DPI, metadata={"Software": None})
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; name another {option}"
        ) from None
    return drawn


def draw(plot: Plot) -> Figure:
    """The figure, with its layout found."""
    from matplotlib.figure import Figure

    across = min(ACROSS, len(plot.panels))
    down = -(-len(plot.panels) // across)
    tallest = max(len(panel.rows) for panel in plot.panels)
    height = max(2.7 if across > 1 else 3.2, 1.1 + 0.27 * tallest)
    figure = Figure(figsize=(6.4 if across == 1 else 3.4 * across, height * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flat
    for number, (axes, panel) in enumerate(zip(grid, plot.panels, strict=False)):
        repeated = number % across and panel.y == plot.panels[number - 1].y
        _panel(axes, replace(panel, y="") if repeated else panel)
        if number % across and panel.rows == plot.panels[number - 1].rows != ():
            axes.tick_params(labelleft=False)
    for axes in list(grid)[len(plot.panels) :]:
        axes.remove()
    figure.suptitle(plot.title, fontsize=10)
    _legend(figure)
    for _ in range(2):  # finds the layout: once with ticks of no size, once with theirs
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _legend(figure: Figure) -> None:
    """One for all panels, below them; none where there is one name."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    if len(named) > 1:
        longest = max(map(len, named))
        columns = max(1, min(len(named), int(figure.get_figwidth() * 14 / (longest + 7))))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=7)


def _panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    for letter, set_scale in (("x", axes.set_xscale), ("y", axes.set_yscale)):
        if letter in panel.log:
            set_scale("log")
    beside = list(
        dict.fromkeys(series.name for series in panel.series if series.look in ("marked", "points"))
    )
    for series in panel.series:
        aside = beside.index(series.name) - (len(beside) - 1) / 2 if series.name in beside else 0
        (_row if panel.rows else LOOKS[series.look])(axes, series, _APART * aside * panel.dodge)
    if panel.reference is not None:
        line = axes.axvline if panel.rows else axes.axhline
        line(panel.reference, color="black", linewidth=0.8, zorder=1)
    if panel.bottom is not None:
        axes.set_ylim(bottom=panel.bottom)
    if any(series.look == "lost" for series in panel.series):
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.1 * (high - low))
    if panel.ticks:
        places, words = zip(*panel.ticks, strict=True)
        axes.set_xticks(places, words)
        axes.minorticks_off()
    elif "x" in panel.log:
        _plain_if_narrow(axes.xaxis)
    if "y" in panel.log:
        _plain_if_narrow(axes.yaxis)
    if panel.rows:
        axes.set_yticks(range(len(panel.rows)), panel.rows)
        if "x" not in panel.log:
            axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set_xlabel(panel.x, fontsize=8)
    axes.set_ylabel(panel.y, fontsize=8)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(labelsize=7, which="both")


def _plain_if_narrow(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis that has hardly a power of ten on it."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    if high < _NARROW * low:
        axis.set_major_locator(MaxNLocator(5))
        axis.set_major_formatter(lambda value, _: short(value))
        axis.set_minor_locator(NullLocator())


def _drawn(series: Series) -> dict[str, Any]:
    rgb = np.array([int(series.style.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return {
        "color": tuple(1 - series.style.shade * (1 - rgb)),
        "label": series.name if series.legend else None,
    }


def _errors(series: Series, value: np.ndarray) -> np.ndarray | None:
    if not len(series.low):
        return None
    return np.abs([value - series.low, series.high - value])


def _marked(axes: Axes, series: Series, aside: float) -> None:
    from matplotlib.transforms import offset_copy

    variant, errors = series.style.variant, _errors(series, series.y)
    for y in (series.y, series.low, series.high):  # which an offset keeps from the limits
        known = np.isfinite(y) if len(y) else np.zeros(len(series.x), bool)
        axes.update_datalim(np.column_stack([series.x[known], y[known] if len(y) else []]))
    axes.errorbar(
        series.x,
        series.y,
        errors,
        marker=MARKERS[variant % len(MARKERS)],
        linestyle="" if series.look == "points" else DASHES[variant % len(DASHES)],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        transform=offset_copy(axes.transData, axes.figure, aside, 0, "points"),
        **_drawn(series),
    )
    axes.autoscale_view()


def _line(axes: Axes, series: Series, aside: float) -> None:
    dash = DASHES[series.style.variant % len(DASHES)]
    axes.plot(series.x, series.y, linestyle=dash, linewidth=1.2, **_drawn(series))


def _band(axes: Axes, series: Series, aside: float) -> None:
    _line(axes, series, aside)
    if len(series.low):
        axes.fill_between(
            series.x, series.low, series.high, color=_drawn(series)["color"], alpha=0.18, linewidth=0
        )


def _star(axes: Axes, series: Series, aside: float) -> None:
    axes.plot(
        series.x,
        series.y,
        "*",
        markersize=10,
        markeredgecolor="black",
        markeredgewidth=0.6,
        zorder=4,
        **_drawn(series),
    )


def _lost(axes: Axes, series: Series, aside: float) -> None:
    """Runs without a value: a cross at the upper edge, with their number."""
    edge = axes.get_xaxis_transform()
    look = _drawn(series)
    axes.plot(
        series.x, np.full(len(series.x), _EDGE), "x", transform=edge, markersize=5, clip_on=False, **look
    )
    for x, count in zip(series.x, series.y, strict=True):
        axes.annotate(
            f"{count:.0f}",
            (x, _EDGE),
            (4, 0),
            xycoords=edge,
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=look["color"],
        )


def _row(axes: Axes, series: Series, aside: float) -> None:
    """Values along x, each in its row (y), with its interval."""
    axes.errorbar(
        series.x,
        series.y,
        xerr=_errors(series, series.x),
        marker=MARKERS[series.style.variant % len(MARKERS)],
        linestyle="",
        markersize=4.5,
        elinewidth=1.1,
        capsize=2.5,
        **_drawn(series),
    )


LOOKS = {"points": _marked, "marked": _marked, "line": _line, "band": _band, "star": _star, "lost": _lost}
