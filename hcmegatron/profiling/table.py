"""A profile's figures as lines of text. No torch."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from schedules.accounting import CAUSES

WIDTH = 110
MOST_CHANGES = 6


def lines(summary: dict[str, Any]) -> list[str]:
    """The tables of docs/profile.md."""
    step = summary["step_ms"]
    out = [
        f"profile of step {summary['step']}: {step:.1f} ms (simulated with its own costs: "
        f"{summary['simulated_step_ms']:.1f} ms), {summary['schedule']}, {summary['microbatches']} micro-batches; "
        f"clocks agree to within {summary['clock_uncertainty_ms']:.3f} ms"
    ]
    if "profiled_step_ms" in summary:
        out.append(
            f"profiled steps took {summary['profiled_step_ms']:.1f} ms, others {summary['unprofiled_step_ms']:.1f} ms"
            + (
                f", under torch.profiler {summary['kineto_step_ms']:.1f} ms"
                if "kineto_step_ms" in summary
                else ""
            )
        )
    out += _table(
        "milliseconds a step: a rank computes, or stands still because",
        ("rank", "computes", *CAUSES, "whole"),
        (
            (
                str(own["rank"]),
                _ms(own["compute_ms"]),
                *(_ms(own["bubble_ms"][cause]) for cause in CAUSES),
                _ms(own["compute_ms"] + sum(own["bubble_ms"].values())),
            )
            for own in summary["per_rank"]
        ),
    )
    out += _table(
        "communication, of all ranks",
        ("kind", "hidden", "exposed", "exposed share", "MiB"),
        (
            (
                kind,
                _ms(own["hidden_ms"]),
                _ms(own["exposed_ms"]),
                _share(own["exposed_ms"], own["hidden_ms"] + own["exposed_ms"]),
                f"{own['bytes'] / 2**20:.2f}",
            )
            for kind, own in summary["communication"].items()
        ),
    )
    out += _table(
        "busy lanes, of all ranks",
        ("lane", "busy", "of the step", "beside computation", "alone"),
        _lanes(summary),
    )
    out += _table(
        "an action: median",
        ("action", "stage", "measured", "simulated"),
        (
            (own["action"], str(own["stage"]), _ms(own["measured_ms"]), _ms(own["simulated_ms"]))
            for own in summary["actions"]
        ),
    )
    out += _table(
        "waited for longest, on its way",
        ("rank", "message", "ms"),
        ((str(own["rank"]), own["what"], _ms(own["ms"])) for own in summary["waited_for"][:MOST_CHANGES]),
    )
    out += _table(
        "a step if",
        ("", "ms", "less"),
        (
            (own["change"], _ms(own["step_ms"]), f"{1 - own['step_ms'] / summary['simulated_step_ms']:.1%}")
            for own in summary["what_if"][:MOST_CHANGES]
        ),
    )
    return [*out, _path(summary["critical_path"])]


def _lanes(summary: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for lane in summary["per_rank"][0]["lanes"]:
        busy, hidden, exposed = (
            sum(own["lanes"][lane][name] for own in summary["per_rank"])
            for name in ("busy_ms", "hidden_ms", "exposed_ms")
        )
        if busy:
            share = _share(busy, summary["step_ms"] * summary["ranks"])
            yield lane, _ms(busy), share, _ms(hidden), _ms(exposed)


def _path(path: list[dict[str, Any]]) -> str:
    """Who the critical path leads through, in words."""
    by_rank: dict[int, float] = {}
    for at in path:
        by_rank[at["rank"]] = by_rank.get(at["rank"], 0.0) + at["ms"]
    shares = ", ".join(f"rank {rank} {_ms(ms)} ms" for rank, ms in sorted(by_rank.items()))
    crossed = sum(a["rank"] != b["rank"] for a, b in pairwise(path))
    return f"critical path: {len(path)} actions, {crossed} messages; {shares}"


def _ms(value: float) -> str:
    return f"{value:.1f}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Nothing where there are no rows."""
    found = Table(box=None, pad_edge=False)
    for index, name in enumerate(header):
        found.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        found.add_row(*row)
    if not found.row_count:
        return []
    text = io.StringIO()
    Console(file=text, width=WIDTH).print(found)
    return ["", f"{title}:", *(f"  {line.rstrip()}" for line in text.getvalue().splitlines())]
