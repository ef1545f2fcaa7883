"""Charts as what plotly.js draws. Colours are numbers of the page's palette ("@3"): the script knows the theme."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hcmegatron.report import thin
from hcmegatron.report.charts import Bars, Chart, Line, Lines, Slides, Tiles

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "hourglass")
PATTERNS = ("", "/", "x", "-", ".", "|", "+", "\\")
COLOURS = 8  # of the palette
CLOSE = 0.05  # of the height: ends that are closer share a label
LONGEST = 28  # letters of a label; a longer one would take the curves' place, and the legend has its names
MOST_WRITTEN = 288  # cells in which their value can be read
Figure = dict[str, Any]


def figure(part: Chart | Slides) -> Figure:
    """What the script draws: `slides` by step, or one drawing; each has `traces` and `layout`.

    A trace of a chart with several axes has its places on each under `over`.
    """
    if isinstance(part, Slides):
        return {"slides": [{"step": step, **_drawing(chart)} for step, chart in part.charts.items()]}
    axes = dict(part.axes) if isinstance(part, Lines) and len(part.axes) > 1 else {}
    return {"axes": axes, **_drawing(part)}


def _drawing(chart: Chart) -> Figure:
    return _plain(DRAWN[type(chart)](chart))


def _plain(value: Any, key: str = "") -> Any:
    """Words as plotly.js shows them: it takes < and & for markup, as only its own templates mean them."""
    if isinstance(value, dict):
        return {name: _plain(inside, name) for name, inside in value.items()}
    if isinstance(value, list) and not (value and isinstance(value[0], int | float)):
        return [_plain(inside, key) for inside in value]
    if isinstance(value, str) and not key.endswith("template"):
        return value.replace("&", "&amp;").replace("<", "&lt;")
    return value


def _lines(chart: Lines) -> Figure:
    axis, words = next(iter(chart.axes.items()))
    traces = [trace for line in chart.lines for trace in _curve(chart, line)]
    traces += _labels(chart)
    for trace in traces:
        over = trace.pop("over")
        trace["x"] = over[axis]
        if len(chart.axes) > 1:
            trace["over"] = over
    scale: Figure = {"rangemode": "tozero"} if chart.from_zero else {}
    if chart.log:
        scale = {"type": "log", "exponentformat": "power"}
    named = max((len(line.values) for line in chart.lines if line.texts), default=0)
    ticks: Figure = {"dtick": 1} if 0 < named <= 24 else {}
    layout = {
        "xaxis": {"title": {"text": words}, **ticks},
        "yaxis": {"title": {"text": chart.value}, **scale},
    }
    return {"traces": traces, "layout": layout}


def _curve(chart: Lines, line: Line) -> list[Figure]:
    kept = thin.drawn(line.values)
    faint = line.look == "faint"
    trace: Figure = {
        "type": "scatter",
        "name": line.name,
        "mode": {"marked": "lines+markers", "dots": "markers"}.get(line.look, "lines"),
        "over": {axis: _numbers(line.over[axis][kept]) for axis in chart.axes},
        "y": _numbers(line.values[kept]),
        "line": {
            "color": f"@{line.style % COLOURS}",
            "dash": "solid" if faint else DASHES[line.style % len(DASHES)],
            "width": 1 if faint else 2,
        },
        "opacity": 0.35 if faint else 1,
        "showlegend": not faint,
        "hoverinfo": "skip" if faint else "x+y+name",
    }
    if line.look in ("marked", "dots"):
        trace["marker"] = {
            "symbol": SYMBOLS[line.style % len(SYMBOLS)],
            "size": 7,
            "color": f"@{line.style % COLOURS}",
        }
    if line.texts:
        trace |= {"text": [line.texts[i] for i in kept], "hovertemplate": "%{text}: %{y:.4g}"}
    return [trace]


def _labels(chart: Lines) -> list[Figure]:
    """The curves' short names at their ends; those that end close to each other share a place."""
    ends: list[tuple[float, int, Line]] = []
    heights: list[np.ndarray] = []
    for line in chart.lines:
        with np.errstate(divide="ignore", invalid="ignore"):
            height = np.log10(line.values) if chart.log else line.values
        finite = np.flatnonzero(np.isfinite(height))
        heights.append(height[finite])
        if line.label and len(finite):
            ends.append((float(height[finite[-1]]), int(finite[-1]), line))
    if len(ends) < 2:
        return []
    every = np.concatenate([*heights, [0.0]] if chart.from_zero else heights)
    close = CLOSE * float(np.ptp(every))
    shared: list[list[tuple[float, int, Line]]] = []
    for end in sorted(ends, key=lambda end: end[0]):
        if shared and end[0] - shared[-1][-1][0] <= close:
            shared[-1].append(end)
        else:
            shared.append([end])
    labels = [_label(chart, together) for together in shared]
    return [label for label in labels if len(label["text"][0]) <= LONGEST]


def _label(chart: Lines, together: list[tuple[float, int, Line]]) -> Figure:
    _, at, line = together[-1]
    names = ", ".join(sorted(each.label for _, _, each in together))
    return {
        "type": "scatter",
        "mode": "text",
        "over": {axis: _numbers(line.over[axis][at : at + 1]) for axis in chart.axes},
        "y": [float(line.values[at])],
        "text": [f"\u00a0\u00a0{names}"],
        "textposition": "middle right",
        "textfont": {"color": "@ink" if len(together) > 1 else f"@{line.style % COLOURS}", "size": 13},
        "cliponaxis": False,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _tiles(chart: Tiles) -> Figure:
    rows, columns = len(chart.rows), len(chart.columns)
    one = len(chart.tiles) == 1
    z, begins = chart.mosaic()
    named = np.full(z.shape, "", dtype=object)
    notes = []
    for number, (label, (top, left)) in enumerate(() if one else begins.items(), start=1):
        for i, row in enumerate(chart.rows):
            for j, column in enumerate(chart.columns):
                named[top + i, left + j] = f"{label}: {row}, {column}"
        place = {"x": left + (columns - 1) / 2, "y": top - 0.5, "yanchor": "bottom", "showarrow": False}
        notes.append({"text": str(number), **place, "font": {"size": 10}})
    trace: Figure = {
        "type": "heatmap",
        "z": [_numbers(row) for row in z],
        "hoverongaps": False,
        "colorscale": "@diverging" if chart.diverging else "@rising",
        "colorbar": {"thickness": 10, "title": {"text": chart.value, "side": "right"}},
        "xgap": 1,
        "ygap": 1,
    }
    if chart.diverging:
        most = float(np.nanmax(np.abs(z))) if np.isfinite(z).any() else 1.0
        trace |= {"zmin": -most, "zmax": most}
    if one:
        trace |= {
            "x": list(range(columns)),
            "y": list(range(rows)),
            "text": [[f"{row}, {column}" for column in chart.columns] for row in chart.rows],
        }
    else:
        trace["text"] = named.tolist()
    trace["hovertemplate"] = "%{text}: %{z:.4g}<extra></extra>"
    if np.isfinite(z).sum() <= MOST_WRITTEN:
        trace["texttemplate"] = "%{z:.2f}"
    ticks = [_ticks(chart.columns), _ticks(chart.rows)] if one else [{"visible": False}, {"visible": False}]
    layout = {
        "xaxis": {
            "constrain": "domain",
            "showgrid": False,
            "zeroline": False,
            "title": {"text": chart.across},
            **ticks[0],
        },
        "yaxis": {
            "autorange": "reversed",
            "showgrid": False,
            "zeroline": False,
            "title": {"text": chart.down},
            **ticks[1],
        },
        "annotations": notes,
    }
    square = not one or rows == columns
    if square:
        layout["yaxis"]["scaleanchor"] = "x"
    return {
        "traces": [trace],
        "layout": layout,
        "aspect": z.shape[0] / z.shape[1] if square else 0,
        "wide": not one,
    }


def _ticks(names: tuple[str, ...], most: int = 24) -> Figure:
    at = thin.chosen(len(names), most)
    return {"tickvals": at, "ticktext": [names[i] for i in at], "automargin": True}


def _bars(chart: Bars) -> Figure:
    traces: list[Figure] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": list(chart.bars),
            "x": _numbers(values),
            "marker": {
                "color": f"@{number % COLOURS}",
                "pattern": {
                    "shape": PATTERNS[number % len(PATTERNS)],
                    "size": 6,
                    "solidity": 0.2,
                    "fillmode": "overlay",
                    "fgcolor": "@paper",
                },
            },
            "hovertemplate": "%{x:.4g}<extra>%{fullData.name}</extra>",
        }
        for number, (name, values) in enumerate(chart.parts.items())
    ]
    traces += [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "y": list(chart.bars),
            "x": _numbers(values),
            "marker": {"symbol": "x", "size": 11, "color": "@ink"},
        }
        for name, values in chart.marks.items()
    ]
    layout = {
        "barmode": "stack",
        "xaxis": {"title": {"text": chart.value}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "automargin": True},
    }
    return {"traces": traces, "layout": layout, "rows": len(chart.bars)}


DRAWN: Mapping[type, Callable[[Any], Figure]] = {Lines: _lines, Tiles: _tiles, Bars: _bars}


def _numbers(values: np.ndarray) -> list[float | None]:
    """For JSON, which has no NaN: six digits, and null for what is not finite."""
    return [
        None if not np.isfinite(v) else int(v) if float(v).is_integer() else float(f"{v:.6g}") for v in values
    ]
