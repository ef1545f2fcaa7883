"""The gap of every run's loss to the first one's, smoothed (mHC, 2512.24880, Fig. 5a)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hcmegatron.report.charts import Line, Lines, Section, Words
from hcmegatron.report.inputs.metrics import AXES, Columns, moving_mean, window_of
from hcmegatron.report.inputs.run import Run
from hcmegatron.report.sections.names import letter

SAME = ("data.tokenizer", "data.paths")  # without which losses a token do not compare


def comparison(runs: Sequence[Run]) -> Section:
    """One curve for every run but the first: below zero it is ahead of the first."""
    first, *others = runs
    apart = [key for key in SAME if len({str(run.configuration.get(key)) for run in runs}) > 1]
    figure = "bits_per_byte" if "data.tokenizer" in apart else "loss"
    lines, ends = [], []
    for number, run in enumerate(others, start=1):
        own, base = (run.validation, first.validation) if figure != "loss" else (run.training, first.training)
        kept, gaps = gap(own, base, figure)
        if not len(gaps) or not np.isfinite(gaps).any():
            ends.append(f"{run.name} and {first.name} have no tokens in common at which both have a loss.")
            continue
        over = {axis: along[kept] for axis, along in own.over.items()}
        lines.append(Line(run.name, letter(runs, run), over, gaps, number))
        last = gaps[np.isfinite(gaps)][-1]
        where = "below" if last < 0 else "above"
        ends.append(f"{run.name} ends {abs(last):.4f} {where} {first.name}.")
    words = Words(tuple(ends + [f"They differ in {', '.join(apart)}: read the gap with care."] * bool(apart)))
    if not lines:
        return Section("comparison", "Gap to the first run", (words,))
    zero = Line(first.name, "A", lines[0].over, np.zeros(len(lines[0].values)), 0)
    value = f"{'bits a byte, held-out' if figure != 'loss' else 'nats a token'}, less those of {first.name}"
    note = "Both losses smoothed over a fiftieth of their steps, the first run's taken at the same tokens."
    chart = Lines("gap", "Loss gap to the first run", value, AXES, (zero, *lines), note=note)
    return Section("comparison", "Gap to the first run", (words, chart))


def gap(own: Columns, base: Columns, figure: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the two have tokens in common, and there own less base.

    Returns:
        indices into own [K], and the smoothed gaps [K].
    """
    if not len(own) or not len(base):
        return np.zeros(0, dtype=int), np.zeros(0)
    smoothed = [moving_mean(each[figure], window_of(len(each))) for each in (own, base)]
    tokens = [each.over["tokens"] for each in (own, base)]
    if not all(np.isfinite(along).all() for along in tokens):
        tokens = [each.over["step"] for each in (own, base)]
    kept = np.flatnonzero((tokens[0] >= tokens[1][0]) & (tokens[0] <= tokens[1][-1]))
    return kept, smoothed[0][kept] - np.interp(tokens[0][kept], tokens[1], smoothed[1])
