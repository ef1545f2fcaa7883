"""A profile's figures as rows of text, for the log and for the report. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from schedules.accounting import CAUSES

MOST = 6  # of what was waited for and of changes, where there is little room


class Rows(NamedTuple):
    """A table: every row has a cell for each column of the head."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def introduction(summary: dict[str, Any]) -> list[str]:
    """Which step it is, and what profiling cost, where that is known."""
    lines = [
        f"profile of step {summary['step']}: {ms(summary['step_ms'])} ms (simulated with its own costs: "
        f"{ms(summary['simulated_step_ms'])} ms), {summary['schedule']}, {summary['microbatches']} micro-batches; "
        f"clocks agree to within {summary['clock_uncertainty_ms']:.3f} ms"
    ]
    if "profiled_step_ms" in summary:
        profiled, others = ms(summary["profiled_step_ms"]), ms(summary["unprofiled_step_ms"])
        kineto = summary.get("kineto_step_ms")
        under = "" if kineto is None else f", under torch.profiler {ms(kineto)} ms"
        lines.append(f"profiled steps took {profiled} ms, others {others} ms{under}")
    return lines


def tables(summary: dict[str, Any], most: int | None = None) -> list[Rows]:
    """Those of docs/profile.md that have rows.

    Args:
        most: rows of what was waited for, and of changes; None: all.
    """
    found = [
        Rows(
            "milliseconds a step: a rank computes, or stands still because",
            ("rank", "computes", *CAUSES, "whole"),
            tuple(
                (
                    str(own["rank"]),
                    ms(own["compute_ms"]),
                    *(ms(own["bubble_ms"][cause]) for cause in CAUSES),
                    ms(own["compute_ms"] + sum(own["bubble_ms"].values())),
                )
                for own in summary["per_rank"]
            ),
        ),
        Rows(
            "communication, of all ranks",
            ("kind", "hidden", "exposed", "exposed share", "MiB"),
            tuple(
                (
                    kind,
                    ms(own["hidden_ms"]),
                    ms(own["exposed_ms"]),
                    _share(own["exposed_ms"], own["hidden_ms"] + own["exposed_ms"]),
                    f"{own['bytes'] / 2**20:,.2f}",
                )
                for kind, own in summary["communication"].items()
            ),
        ),
        Rows(
            "busy lanes, of all ranks",
            ("lane", "busy", "of the step", "beside computation", "alone"),
            tuple(_lanes(summary)),
        ),
        Rows(
            "an action: median",
            ("action", "stage", "measured", "simulated"),
            tuple(
                (own["action"], str(own["stage"]), ms(own["measured_ms"]), ms(own["simulated_ms"]))
                for own in summary["actions"]
            ),
        ),
        Rows(
            "waited for longest, on its way",
            ("rank", "message", "ms"),
            tuple((str(own["rank"]), own["what"], ms(own["ms"])) for own in summary["waited_for"][:most]),
        ),
        Rows("a step if", ("", "ms", "less"), tuple(_changes(summary))[:most]),
    ]
    return [table for table in found if table.rows]


def critical_path(path: list[dict[str, Any]]) -> str:
    """Who the critical path leads through, in words."""
    by_rank: dict[int, float] = {}
    for at in path:
        by_rank[at["rank"]] = by_rank.get(at["rank"], 0.0) + at["ms"]
    shares = ", ".join(f"rank {rank} {ms(taken)} ms" for rank, taken in sorted(by_rank.items()))
    crossed = sum(a["rank"] != b["rank"] for a, b in pairwise(path))
    return f"critical path: {len(path)} actions, {crossed} messages; {shares}"


def ms(value: float) -> str:
    """Milliseconds with a tenth."""
    return f"{value:,.1f}"


def _changes(summary: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The most helpful first; of one that makes the step longer, `less` is negative."""
    for own in summary["what_if"]:
        yield own["change"], ms(own["step_ms"]), f"{1 - own['step_ms'] / summary['simulated_step_ms']:.1%}"


def _lanes(summary: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for lane in summary["per_rank"][0]["lanes"]:
        busy, hidden, exposed = (
            sum(own["lanes"][lane][name] for own in summary["per_rank"])
            for name in ("busy_ms", "hidden_ms", "exposed_ms")
        )
        if busy:
            share = _share(busy, summary["step_ms"] * summary["ranks"])
            yield lane, ms(busy), share, ms(hidden), ms(exposed)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"
