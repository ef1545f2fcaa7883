"""A figure as data: panels of series with their intervals. Its numbers are its CSV file, whatever draws it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from hcmegatron.report.charts import Table, Words
from hcmegatron.studies.gaps import Interval

Look = Literal["points", "line", "marked", "band", "star", "lost"]


class Style(NamedTuple):
    """How an arm looks in every figure: its kind's colour, and marker and dash of its settings."""

    colour: str
    variant: int = 0
    shade: float = 1.0  # towards white, of several series of one arm


@dataclass(frozen=True)
class Series:
    """Values over places.

    Attributes:
        x, y: [points]. Of `lost` (runs that diverged) y is how many.
        low, high: [points], the interval of each; nan where it has none. Empty: none at all.
        look: points, with bars for intervals; line, without markers; marked, both; band, a line whose intervals are an
            area; star, an optimum; lost, a cross at the upper edge with a number.
        counts: of runs behind each value; empty where it is no mean.
        notes: further words for the CSV file, of each point; empty: none.
        legend: whether its name is in the legend.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: Style
    look: Look = "marked"
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    legend: bool = True


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        x, y: words of the axes, with units.
        log: which of them are logarithmic.
        reference: a horizontal line, such as a gap of zero; of `rows` a vertical one.
        ticks: words for places on the x axis, by place; empty: numbers.
        dodge: whether series are drawn a little beside each other, for their intervals to be told apart.
        bottom: where the y axis begins; None: by the values.
        rows: words for places on the y axis, from the top: then values lie on x with their intervals.
    """

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    log: str = ""
    reference: float | None = None
    ticks: tuple[tuple[float, str], ...] = ()
    dodge: bool = False
    bottom: float | None = None
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: of its files.
        note: what has to be known to read it, in sentences.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    note: str = ""

    def records(self) -> Iterator[tuple[str, ...]]:
        """A head, then a row for every value."""
        yield ("panel", "series", "x", "y", "low", "high", "runs", "note")
        for panel in self.panels:
            for series in panel.series:
                for i in range(len(series.x)):
                    yield (
                        panel.title,
                        series.name,
                        _text(series.x[i]),
                        _text(series.y[i]),
                        _text(series.low[i]) if len(series.low) else "",
                        _text(series.high[i]) if len(series.high) else "",
                        str(series.counts[i]) if series.counts else "",
                        series.notes[i] if series.notes else "",
                    )

    def csv(self) -> str:
        """The records as a file."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self.records())
        return text.getvalue()


def lost_series(name: str, x: np.ndarray, lost: np.ndarray, style: Style) -> Series:
    """Runs that diverged: so many at each place, [points]."""
    return Series(f"{name}: diverged", x[lost > 0], lost[lost > 0], style, "lost", legend=False)


def row_series(name: str, row: int, value: Interval, style: Style) -> Series:
    """A value in a row of its own, with its interval."""
    at, low, high = (np.array([number]) for number in (value.mean, value.low, value.high))
    style = style._replace(variant=0, shade=1.0)
    return Series(name, at, np.array([float(row)]), style, "points", low, high, (value.count,), legend=False)


class NotDrawn(NamedTuple):
    """A figure that cannot be, and why in one sentence."""

    title: str
    why: str


Part = Words | Table | Plot | NotDrawn


def _text(value: float) -> str:
    return "" if not np.isfinite(value) else repr(float(value))
