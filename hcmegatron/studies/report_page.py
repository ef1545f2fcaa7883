"""A study's report as one HTML page, and its tables as CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from hcmegatron.report import charts
from hcmegatron.report.page.html import content, page
from hcmegatron.studies.figures.plot import NotDrawn, Part, Plot
from hcmegatron.studies.report import StudySection


def study_page(title: str, sections: Sequence[StudySection], drawn: Mapping[str, str]) -> str:
    """The page, which stands alone: figures are in it, and it has no scripts to draw them.

    Args:
        drawn: SVG of every figure by its name.
    """
    shown = [
        charts.Section(one.name, one.title, tuple(_part(part, drawn) for part in one.parts))
        for one in sections
    ]
    return page(title, content(shown), plotly="")


def tables(sections: Sequence[StudySection]) -> dict[str, str]:
    """Every table as CSV, by the name of its file."""
    found = {}
    for section in sections:
        for number, table in enumerate(part for part in section.parts if isinstance(part, charts.Table)):
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([table.head, *table.rows])
            found[f"{section.name}{f'-{number + 1}' if number else ''}.csv"] = text.getvalue()
    return found


def _part(part: Part, drawn: Mapping[str, str]) -> charts.Part:
    if isinstance(part, Plot):
        return charts.Picture(part.name, part.title, drawn[part.name], part.note)
    if isinstance(part, NotDrawn):
        return charts.Words((f"{part.title}: not drawn: {part.why}.",))
    return part
