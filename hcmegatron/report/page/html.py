"""The page as text: it stands alone, without network, and its numbers are there without scripts too."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

from hcmegatron import __version__
from hcmegatron.report.charts import Chart, Part, Picture, Section, Slides, Table, Words
from hcmegatron.report.inputs.metrics import AXES
from hcmegatron.report.page.figures import figure

HERE = "hcmegatron.report.page"
WITHOUT_SCRIPTS = "The figures need JavaScript. Their numbers are in the tables under them."


class Content(NamedTuple):
    """What changes when a run goes on: the page's middle, and the figures by name."""

    body: str
    figures: dict[str, Any]


def content(sections: Sequence[Section]) -> Content:
    """The sections as HTML, and what is drawn in them."""
    figures: dict[str, Any] = {}
    body = ["<nav>", *(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections), "</nav>"]
    if any(isinstance(part, Chart | Slides) for section in sections for part in section.parts):
        body.append(_switch())
    for section in sections:
        body.append(f'<section id="{section.name}"><h2>{escape(section.title)}</h2>')
        slides = [part for part in section.parts if isinstance(part, Slides)]
        for part in section.parts:
            if slides and part is slides[0]:
                body.append(_slider(slides))
            body.append(_part(part, figures))
        body.append("</section>")
    return Content("\n".join(body), figures)


def page(title: str, found: Content, plotly: str, live: bool = False) -> str:
    """The whole page.

    Args:
        plotly: the source of plotly.js.
        live: whether the page asks its server for what is new.
    """
    style, script = (
        resources.files(HERE).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")
    )
    rules = (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {chr(39)}{'self' if live else 'none'}{chr(39)}"
    )
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{rules}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>",
            "<noscript><style>.plot, .switch, .slider { display: none; }</style></noscript>",
            f"</head><body{' data-live' if live else ''}>",
            f"<header><h1>{escape(title)}</h1>",
            f"<noscript><p>{WITHOUT_SCRIPTS}</p></noscript></header>" if found.figures else "</header>",
            f'<main id="main">{found.body}</main>',
            f"<footer><p>hcmegatron {__version__}</p></footer>",
            f'<script type="application/json" id="figures">{in_script(found.figures)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{script}</script>",
            "</body></html>\n",
        ]
    )


def in_script(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _part(part: Part, figures: dict[str, Any]) -> str:
    if isinstance(part, Words):
        return "".join(f"<p>{escape(line)}</p>" for line in part.lines)
    if isinstance(part, Table):
        return f"<figure>{_table(part)}{_note(part.note)}</figure>"
    if isinstance(part, Picture):
        source = base64.b64encode(part.svg.encode()).decode()
        return (
            f"<figure><figcaption>{escape(part.title)}</figcaption><div class=scroll>"
            f'<img class="drawn" alt="{escape(part.title)}" src="data:image/svg+xml;base64,{source}"></div>'
            f"{_note(part.note)}</figure>"
        )
    figures[part.name] = figure(part)
    shown = part.last if isinstance(part, Slides) else part
    note = " ".join(filter(None, [part.note, shown.note if shown is not part else ""]))
    numbers = f"Numbers after step {max(part.charts):,}" if isinstance(part, Slides) else "Numbers"
    return (
        f"<figure><figcaption>{escape(part.title)}</figcaption>"
        f'<div class="plots"><div class="plot" data-figure="{escape(part.name)}" role="img" '
        f'aria-label="{escape(part.title)}; its numbers follow as a table"></div></div>{_note(note)}'
        f'<details id="numbers-{escape(part.name)}"><summary>{numbers}</summary>{_table(shown.table())}</details>'
        "</figure>"
    )


def _note(words: str) -> str:
    return f'<p class="note">{escape(words)}</p>' if words else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    some = f" ({table.note})" if table.note and "of" in table.note else ""
    return (
        f'<div class="scroll" tabindex="0"><table><caption>{escape(table.title + some)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _switch() -> str:
    """Which axis curves are drawn over."""
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{axis}"{" checked" if axis == "step" else ""}>'
        f"{escape(words)}</label>"
        for axis, words in AXES.items()
    )
    return f'<fieldset class="switch"><legend>Curves over</legend>{choices}</fieldset>'


def _slider(slides: Sequence[Slides]) -> str:
    """Which observation the figures after it show; of a run without one at that step, the one before."""
    steps = sorted({step for part in slides for step in part.charts})
    return (
        f'<div class="slider"><label for="slider">Observed after step <output id="shown">{steps[-1]}</output></label>'
        f'<input type="range" id="slider" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}" '
        f'data-steps="{escape(json.dumps(steps))}"></div>'
    )
