"""A plan as one page for a browser: the verdict, memory over the step, where the time goes, tables, what is assumed.

It stands alone: no network, no scripts, no fonts but the reader's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from hcmegatron.planner import tables
from hcmegatron.planner.changes import LighterPlan
from hcmegatron.planner.picture import to_svg
from hcmegatron.planner.plan import Overhead, Plan
from hcmegatron.planner.step_memory import COMPONENTS
from hcmegatron.planner.step_time import PARTS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 0 auto; max-width: 1080px;
  padding: 24px; }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 8px; }
p { margin: 4px 0; } .verdict { font-weight: 600; padding: 8px 12px; border-left: 4px solid; margin: 12px 0; }
.fits { border-color: #1a7f37; background: #edf8f0; } .not { border-color: #b00020; background: #fdeef0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto; }
th, td { padding: 3px 12px 3px 0; text-align: right; border-bottom: 1px solid #e3e7ec; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { color: #5b6675; font-weight: 600; }
.bar { display: flex; height: 26px; border-radius: 3px; overflow: hidden; background: #eef1f4; flex: 1; }
.row { display: flex; align-items: center; gap: 10px; margin: 4px 0; } .row b { width: 60px; font-weight: 500; }
.row i { width: 90px; text-align: right; font-style: normal; font-variant-numeric: tabular-nums; }
.key span { display: inline-block; margin: 0 14px 2px 0; white-space: nowrap; }
.key span::before { content: ""; display: inline-block; width: 11px; height: 11px; margin-right: 5px;
  background: var(--c); border-radius: 2px; }
svg { width: 100%; height: auto; } code { font: 13px/1.5 ui-monospace, monospace; }
.note { color: #5b6675; }
"""


def to_html(
    plan: Plan, overheads: list[Overhead], lighter: list[LighterPlan], price: float | None, title: str
) -> str:
    """The page.

    Args:
        title: what was planned: a file's name.
    """
    memory, time, *rest = tables.grids(plan, overheads)
    words = tables.headline(plan)
    changes = tables.advice(plan, lighter)
    ranks = range(len(plan.memory))
    room = max(plan.peak, plan.layout.machine.memory)
    held = [
        (f"rank {r}", plan.memory[r].peak, f"{tables.gib(plan.memory[r].peak.total())} GiB") for r in ranks
    ]
    took = [(f"rank {r}", plan.time.parts[r], f"{plan.seconds:.3f} s") for r in ranks]
    body = [
        f"<h1>{escape(title)} on {plan.layout.gpus} x {escape(plan.layout.machine.name)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in words[:-1]),
        f'<p class="verdict {"fits" if plan.fits else "not"}">{escape(words[-1])}</p>',
        *(f"<p>{escape(line)}</p>" for line in tables.describe_run(plan, price)),
        "<h2>Memory over the step</h2>",
        to_svg(plan),
        "<h2>What it is</h2>",
        *_bars(COMPONENTS, held, room),
        f'<p class="note">{escape(_capital(memory.title))}</p>',
        _table(memory),
        "<h2>Where the time goes</h2>",
        *_bars(PARTS, took, plan.seconds),
        f'<p class="note">{escape(_capital(time.title))}</p>',
        _table(time),
        *(f"<h2>{escape(_capital(grid.title))}</h2>{_table(grid)}" for grid in rest),
        *(["<h2>Changes</h2>", f"<p>{escape(_capital(changes[0]))}</p>"] if changes else []),
        *(f"<p><code>{escape(line.strip())}</code></p>" for line in changes[1:]),
        "<h2>What is assumed</h2>",
        *(f'<p class="note">{escape(_capital(line))}.</p>' for line in tables.assumptions(plan)),
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}: plan</title><style>{STYLE}</style></head><body>",
            *body,
            "</body></html>\n",
        ]
    )


def _bars(names: Iterable[str], rows: list[tuple[str, dict[str, float], str]], whole: float) -> Iterable[str]:
    """A stacked bar for every row, with a key of the colours. `whole` is the full width."""
    used = [name for name in names if any(row[name] > 0 for _, row, _ in rows)]
    colours = {
        name: f"hsl({360 * i / len(used):.0f} 55% {42 + 14 * (i % 2)}%)" for i, name in enumerate(used)
    }
    key = "".join(f'<span style="--c: {colours[name]}">{escape(name)}</span>' for name in used)
    yield f'<p class="key">{key}</p>'
    for label, values, total in rows:
        parts = "".join(
            f'<div style="width: {100 * max(0.0, values[name]) / whole:.3f}%; background: {colours[name]}" '
            f'title="{escape(name)}: {100 * values[name] / sum(values.values()):.1f}%"></div>'
            for name in used
        )
        yield f'<div class="row"><b>{escape(label)}</b><div class="bar">{parts}</div><i>{escape(total)}</i></div>'


def _table(grid: tables.Grid) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in grid.head)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
