"""A figure's data, drawn by matplotlib: SVG and PNG for papers, black on white."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.report.files import DASHES, MARKERS, SETTINGS
from hcmegatron.studies.figures.plot import Panel, Plot, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3  # panels beside each other
_EDGE = 0.96  # of the axes' height: where runs that diverged are
_DPI = 150
_APART = 3.0  # points, of series that are drawn beside each other


def write(plots: Sequence[Plot], folder: Path) -> dict[str, str]:
    """NAME.svg, NAME.png and NAME.csv of every figure.

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
            f"{error.filename or folder}: cannot be written: {error.strerror}; name another --out"
        ) from None
    return drawn


def draw(plot: Plot) -> Figure:
    """The figure, with its layout found."""
    from matplotlib.figure import Figure

    across = min(ACROSS, len(plot.panels))
    down = -(-len(plot.panels) // across)
    tallest = max(len(panel.rows) for panel in plot.panels)
    height = max(2.7, 1.1 + 0.27 * tallest)
    figure = Figure(figsize=(6.4 if across == 1 else 3.4 * across, height * down + 0.6), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flat
    for axes, panel in zip(grid, plot.panels, strict=False):
        _panel(axes, panel)
    for axes in list(grid)[len(plot.panels) :]:
        axes.remove()
    figure.suptitle(plot.title, fontsize=10)
    _legend(figure)
    figure.draw_without_rendering()  # finds the layout
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
    if "x" in panel.log:
        axes.set_xscale("log")
    if "y" in panel.log:
        axes.set_yscale("log")
    names = list(dict.fromkeys(series.name for series in panel.series if series.look == "marked"))
    for series in panel.series:
        aside = (
            names.index(series.name) - (len(names) - 1) / 2 if panel.dodge and series.name in names else 0.0
        )
        (_row if panel.rows else LOOKS[series.look])(axes, series, _APART * aside)
    if panel.reference is not None:
        (axes.axvline if panel.rows else axes.axhline)(
            panel.reference, color="black", linewidth=0.8, zorder=1
        )
    if panel.ticks:
        places, words = zip(*panel.ticks, strict=True)
        axes.set_xticks(places, words)
        axes.minorticks_off()
    if panel.rows:
        axes.set_yticks(range(len(panel.rows)), panel.rows)
        axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.set_title(panel.title, fontsize=9)
    axes.tick_params(labelsize=7)


def _drawn(series: Series) -> dict[str, Any]:
    rgb = np.array([int(series.style.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return {
        "color": tuple(1 - series.style.shade * (1 - rgb)),
        "label": series.name if series.legend else None,
    }


def _errors(series: Series, value: np.ndarray) -> np.ndarray | None:
    if not len(series.low):
        return None
    return np.nan_to_num(np.abs([value - series.low, series.high - value]))


def _marked(axes: Axes, series: Series, aside: float) -> None:
    from matplotlib.transforms import offset_copy

    variant = series.style.variant
    axes.errorbar(
        series.x,
        series.y,
        _errors(series, series.y),
        marker=MARKERS[variant % len(MARKERS)],
        linestyle="" if series.look == "points" else DASHES[variant % len(DASHES)],
        markersize=4,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        transform=offset_copy(axes.transData, axes.figure, aside, 0, "points"),
        **_drawn(series),
    )


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
