"""A profile's figures as lines of text. No torch."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from hcmegatron.profiling.rows import MOST, Rows, critical_path, introduction, tables

WIDTH = 110


def lines(summary: dict[str, Any]) -> list[str]:
    """The tables of docs/profile.md."""
    drawn = [line for rows in tables(summary, MOST) for line in _table(rows)]
    return [*introduction(summary), *drawn, critical_path(summary["critical_path"])]


def _table(rows: Rows) -> list[str]:
    found = Table(box=None, pad_edge=False)
    for index, name in enumerate(rows.head):
        found.add_column(name, justify="left" if index == 0 else "right")
    for row in rows.rows:
        found.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(found)
    return ["", f"{rows.title}:", *(f"  {line.rstrip()}" for line in text.getvalue().splitlines())]
