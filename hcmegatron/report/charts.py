"""What a report consists of, whatever draws it: sections of words, tables, charts, slides of charts and pictures.

Every chart can say its numbers as records, which become a CSV file, and as a short table for who cannot see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hcmegatron.report import thin

ACROSS = 8  # tiles beside each other
DEPTH = {"depth": "sub-layer, counted from the embedding"}


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column names its row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Words:
    """Paragraphs."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """An SVG that was drawn elsewhere."""

    name: str
    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        label: short, at its end.
        over: by axis, where each value is, [T].
        values: [T]; NaN is a gap.
        style: its colour, dash and marker are those of this number.
        look: line; faint, behind another one; marked, a line with a marker at every value; dots, markers alone.
        texts: of the values, where each has words of its own.
    """

    name: str
    label: str
    over: Mapping[str, np.ndarray]
    values: np.ndarray
    style: int = 0
    look: Literal["line", "faint", "marked", "dots"] = "line"
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lines:
    """Curves over one axis, or over each of several that a reader can switch between.

    Attributes:
        name: of its files.
        axes: by name, in words; the first is the one that files and tables have.
        from_zero: whether zero is on the axis of values.
    """

    name: str
    title: str
    value: str
    axes: Mapping[str, str]
    lines: tuple[Line, ...]
    log: bool = False
    from_zero: bool = False
    note: str = ""

    def records(self) -> Iterator[tuple[str, ...]]:
        """A head, then a row for every value."""
        yield ("curve", *self.axes, self.value)
        for line in self.lines:
            for i, value in enumerate(line.values):
                yield (line.name, *(_text(line.over[axis][i]) for axis in self.axes), _text(value))

    def table(self) -> Table:
        """A row for each of some places on the first axis, a column for each curve that is not behind another."""
        axis, words = next(iter(self.axes.items()))
        lines = [line for line in self.lines if line.look != "faint"]
        places = np.unique(np.concatenate([line.over[axis] for line in lines] or [np.zeros(0)]))
        places = places[np.isfinite(places)]
        at = {id(line): dict(zip(line.over[axis], line.values, strict=True)) for line in lines}
        named = {
            place: text for line in lines for place, text in zip(line.over[axis], line.texts, strict=False)
        }
        rows = tuple(
            (
                " ".join(filter(None, [_text(places[i]), named.get(places[i])])),
                *(_shown(at[id(line)].get(places[i])) for line in lines),
            )
            for i in thin.chosen(len(places))
        )
        some = f"{len(rows)} of {len(places):,}" if len(rows) < len(places) else ""
        return Table(f"{self.title}: {self.value}", (words, *(line.name for line in lines)), rows, some)


@dataclass(frozen=True)
class Tiles:
    """Matrices with one scale of colours.

    Attributes:
        tiles: by label, [rows, columns] each, all of one shape.
        rows, columns: the labels of theirs, in words what they are.
        diverging: whether colours part at zero.
    """

    name: str
    title: str
    value: str
    tiles: Mapping[str, np.ndarray]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    across: str = ""
    down: str = ""
    diverging: bool = False
    note: str = ""

    def mosaic(self) -> tuple[np.ndarray, dict[str, tuple[int, int]]]:
        """All matrices as one, ACROSS beside each other with a gap of NaN between, and where each begins: by label, row
        and column."""
        rows, columns = len(self.rows), len(self.columns)
        across = min(ACROSS, len(self.tiles))
        down = -(-len(self.tiles) // across)
        whole = np.full((down * (rows + 1) - 1, across * (columns + 1) - 1), np.nan)
        begins = {}
        for number, (label, matrix) in enumerate(self.tiles.items()):
            top, left = number // across * (rows + 1), number % across * (columns + 1)
            whole[top : top + rows, left : left + columns] = matrix
            begins[label] = top, left
        return whole, begins

    def records(self) -> Iterator[tuple[str, ...]]:
        """A head, then a row for every cell."""
        yield ("matrix", self.down or "row", self.across or "column", self.value)
        for label, matrix in self.tiles.items():
            for row, name in enumerate(self.rows):
                for column, other in enumerate(self.columns):
                    yield (label, name, other, _text(matrix[row, column]))

    def table(self) -> Table:
        """A row for every matrix's row."""
        one = len(self.tiles) == 1
        rows = [
            ((name if one else f"{label}, {name}"), *map(_shown, matrix[row]))
            for label, matrix in self.tiles.items()
            for row, name in enumerate(self.rows)
        ]
        some = f"{thin.MOST_ROWS * 4} of {len(rows):,}" if len(rows) > thin.MOST_ROWS * 4 else ""
        kept = tuple(rows[i] for i in thin.chosen(len(rows), thin.MOST_ROWS * 4))
        return Table(f"{self.title}: {self.value}", (self.down or "row", *self.columns), kept, some)


@dataclass(frozen=True)
class Bars:
    """Stacked bars: what each is made of.

    Attributes:
        bars: their names.
        parts: by name, [bars].
        marks: by name, [bars]: points beside the stacks; NaN where there is none.
    """

    name: str
    title: str
    value: str
    bars: tuple[str, ...]
    parts: Mapping[str, np.ndarray]
    marks: Mapping[str, np.ndarray]
    note: str = ""

    def records(self) -> Iterator[tuple[str, ...]]:
        """A head, then a row for every part of every bar."""
        yield ("bar", "part", self.value)
        for name, values in (*self.parts.items(), *self.marks.items()):
            for bar, value in zip(self.bars, values, strict=True):
                yield (bar, name, _text(value))

    def table(self) -> Table:
        """A row for every bar."""
        named = {**self.parts, "together": sum(self.parts.values()), **self.marks}
        rows = tuple(
            (bar, *(_shown(values[i]) for values in named.values())) for i, bar in enumerate(self.bars)
        )
        return Table(f"{self.title}: {self.value}", ("", *named), rows)


Chart = Lines | Tiles | Bars


@dataclass(frozen=True)
class Slides:
    """The same chart after several steps of training, of which one is shown.

    Attributes:
        charts: by step, ascending; at least one.
    """

    name: str
    title: str
    charts: Mapping[int, Chart]
    note: str = ""

    @property
    def last(self) -> Chart:
        """After the last of the steps."""
        return self.charts[max(self.charts)]

    def records(self) -> Iterator[tuple[str, ...]]:
        """Those of every chart, with the step in front."""
        for number, (step, chart) in enumerate(self.charts.items()):
            head, *rows = chart.records()
            if number == 0:
                yield ("step", *head)
            yield from ((str(step), *row) for row in rows)


Part = Table | Words | Picture | Chart | Slides


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    name: str
    title: str
    parts: tuple[Part, ...]


def _text(value: float) -> str:
    """A number for a program: every digit; nothing for none."""
    if not np.isfinite(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def _shown(value: float | None) -> str:
    """A number for a reader: five digits."""
    if value is None or not np.isfinite(value):
        return "–"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.5g}"
