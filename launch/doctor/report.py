"""What was found, for people (a table, worst first) and for programs."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hcmegatron.planner.report import Output
from launch.doctor.findings import Finding, Level, Report

STYLES = {Level.FAULT: "bold red", Level.WARNING: "yellow", Level.NOTE: "dim", Level.OK: "green"}
FORMAT = 1
SHOWN = 4  # machines that a row names


def show(report: Report) -> None:
    """Print the table. Every row says its level in a word: colours add nothing to it."""
    console = Output(highlight=False, width=None if Console().is_terminal else 150)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    several = len(report.nodes) > 1
    for name in ("looked at", "found", *(["where"] if several else []), "remedy"):
        table.add_column(name, overflow="fold")
    for finding in report.findings:
        level = Text(finding.level.name.lower(), STYLES[finding.level])
        machines = [where(finding, report.nodes)] if several else []
        cells = (finding.name, finding.value, *machines, finding.remedy)
        table.add_row(level, *(Text(cell) for cell in cells))
    console.print(table)
    print(headline(report))


def where(finding: Finding, nodes: list[str]) -> str:
    """Its machines in few words."""
    if set(finding.nodes) == set(nodes):
        return f"all {len(nodes)}"
    more = len(finding.nodes) - SHOWN
    return ", ".join(finding.nodes[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def headline(report: Report) -> str:
    """The verdict in a line."""
    faults, warnings = (
        sum(finding.level is level for finding in report.findings) for level in (Level.FAULT, Level.WARNING)
    )
    bad = f"; to be left out: {', '.join(report.bad)}" if report.bad else ""
    return (
        f"{_many(len(report.nodes), 'machine')}: {_many(faults, 'fault')}, {_many(warnings, 'warning')}{bad}"
    )


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def as_json(report: Report) -> dict[str, Any]:
    """Everything, as plain data."""
    figures = dict(report.figures)
    for what in ("within", "between"):
        figures[what] = [
            {"pair": [first, second], **link._asdict()} for first, second, link in figures.get(what, ())
        ]
    return {
        "format": FORMAT,
        "status": report.status,
        "nodes": report.nodes,
        "bad_nodes": report.bad,
        "findings": [finding.as_json() for finding in report.findings],
        "figures": figures,
    }
