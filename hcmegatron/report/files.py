"""Every chart as SVG and PNG for papers, with a CSV file of its numbers beside them. matplotlib draws."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmegatron.config.errors import ConfigError
from hcmegatron.report import thin
from hcmegatron.report.charts import Bars, Chart, Lines, Picture, Section, Slides, Tiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#00805c", "#aa3f94", "#a86a00", "#3a8fc7", "#7a1f4d", "#666666")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (8, 3)), (0, (8, 2, 2, 2)))
MARKERS = ("o", "s", "D", "P", "^", "X", "*", "v")
HATCHES = ("", "//", "xx", "--", "..", "||", "++", "\\\\")
# The same bytes for the same numbers; text stays text.
SETTINGS = {
    "svg.hashsalt": "hcmegatron",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def write(sections: Sequence[Section], folder: Path) -> list[Path]:
    """NAME.svg, NAME.png and NAME.csv of every chart, and NAME.svg of every picture; of slides, the last is drawn, and
    the CSV file has all.

    Returns:
        the files.

    Raises:
        ConfigError: the folder cannot be written.
    """
    import matplotlib

    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(SETTINGS):
            for part in (part for section in sections for part in section.parts):
                if isinstance(part, Picture):
                    written.append(_text(folder / f"{part.name}.svg", part.svg))
                elif isinstance(part, Chart | Slides):
                    drawn = draw(part.last if isinstance(part, Slides) else part)
                    drawn.draw_without_rendering()  # finds the layout
                    drawn.set_layout_engine("none")
                    for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                        written.append(folder / f"{part.name}.{ending}")
                        drawn.savefig(written[-1], dpi=150, metadata=metadata)
                    written.append(_text(folder / f"{part.name}.csv", _csv(part)))
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: cannot be written: {error.strerror}; name another --out"
        ) from None
    return written


def draw(chart: Chart) -> Figure:
    """The chart in matplotlib, black on white."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    DRAWN[type(chart)](figure, chart)
    return figure


def _lines(figure: Figure, chart: Lines) -> None:
    axes = figure.subplots()
    axis, words = next(iter(chart.axes.items()))
    for line in chart.lines:
        kept = thin.drawn(line.values, 4 * thin.MOST_POINTS)
        faint, style = line.look == "faint", line.style
        axes.plot(
            line.over[axis][kept],
            line.values[kept],
            color=COLOURS[style % len(COLOURS)],
            linestyle="" if line.look == "dots" else "-" if faint else DASHES[style % len(DASHES)],
            marker=MARKERS[style % len(MARKERS)] if line.look in ("marked", "dots") else "",
            markersize=3.5,
            linewidth=0.6 if faint else 1.4,
            alpha=0.35 if faint else 1,
            label=None if faint else line.name,
        )
        finite = np.flatnonzero(np.isfinite(line.values))
        if line.label and len(finite):
            end = line.over[axis][finite[-1]], line.values[finite[-1]]
            axes.annotate(line.label, end, (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(xlabel=words, ylabel=chart.value, title=chart.title)
    positive = any((line.values[np.isfinite(line.values)] > 0).any() for line in chart.lines)
    if chart.log and positive:
        axes.set_yscale("log", nonpositive="mask")
    if sum(line.look != "faint" for line in chart.lines) > 1:
        axes.legend(fontsize=7)


def _tiles(figure: Figure, chart: Tiles) -> None:
    whole, begins = chart.mosaic()
    most = float(np.nanmax(np.abs(whole))) if np.isfinite(whole).any() else 1.0
    colours = ("RdBu", -most) if chart.diverging else ("YlGnBu", 0)
    axes = figure.subplots()
    axes.grid(False)
    one = len(begins) == 1
    square = not one or len(chart.rows) == len(chart.columns)
    aspect = "equal" if square else "auto"
    image = axes.imshow(whole, aspect=aspect, cmap=colours[0], vmin=colours[1], vmax=most or 1.0)
    if one:
        for set_ticks, names in ((axes.set_xticks, chart.columns), (axes.set_yticks, chart.rows)):
            at = thin.chosen(len(names), 20)
            set_ticks(at, [names[i] for i in at], fontsize=6)
        axes.tick_params(axis="x", rotation=90 if max(map(len, chart.columns)) > 3 else 0)
        axes.set(xlabel=chart.across, ylabel=chart.down)
    else:
        figure.set_size_inches(6.4, 1.2 + 5.2 * whole.shape[0] / whole.shape[1])
        for number, (top, left) in enumerate(begins.values(), start=1):
            axes.text(left - 0.5, top - 0.7, str(number), fontsize=6)
        axes.axis("off")
    axes.set_title(chart.title)
    figure.colorbar(image, ax=axes, label=chart.value)


def _bars(figure: Figure, chart: Bars) -> None:
    axes = figure.subplots()
    start = np.zeros(len(chart.bars))
    for number, (name, values) in enumerate(chart.parts.items()):
        axes.barh(
            chart.bars,
            values,
            left=start,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            linewidth=0.3,
        )
        start = start + np.nan_to_num(values)
    for name, values in chart.marks.items():
        axes.plot(values, chart.bars, "kx", label=name)
    axes.invert_yaxis()
    axes.set(xlabel=chart.value, title=chart.title)
    axes.legend(fontsize=6)


DRAWN: Mapping[type, Callable[[Any, Any], None]] = {Lines: _lines, Tiles: _tiles, Bars: _bars}


def _csv(part: Chart | Slides) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(part.records())
    return text.getvalue()


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
