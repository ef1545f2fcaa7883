"""What the connections did: summary figures over the run, and after each observed step what the papers show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hcmegatron.report.charts import Chart, Line, Lines, Part, Section, Slides, Words
from hcmegatron.report.inputs.metrics import AXES, placed
from hcmegatron.report.inputs.observations import shown
from hcmegatron.report.inputs.run import Run
from hcmegatron.report.sections.names import letter
from hcmegatron.report.sections.observed import observed_charts

# Scalars of diagnostics.jsonl: title, value, logarithmic, and the names with what a curve of each is called.
SCALARS = {
    "gains": (
        "Greatest gain over depth",
        "Amax gain",
        True,
        {
            "composite_gain_forward_max": "composite, forward",
            "composite_gain_backward_max": "composite, backward",
            "single_gain_forward_max": "single, forward",
            "single_gain_backward_max": "single, backward",
        },
    ),
    "similarities": (
        "Similarity",
        "cosine similarity",
        False,
        {
            "stream_similarity_mean": "of streams, mean",
            "layer_similarity_median": "of neighbouring inputs, median",
        },
    ),
    "saturation": ("Saturated gates", "greatest share over depth", False, {"gate_saturation_max": "gates"}),
    "doubly-stochastic": (
        "Distance of the residual maps from doubly stochastic ones",
        "error",
        True,
        {"doubly_stochastic_error": "error"},
    ),
}


def diagnostics(runs: Sequence[Run]) -> Section:
    """Curves of all runs together, then the slides of each."""
    parts: list[Part] = [*_scalars(runs)]
    for number, run in enumerate(runs):
        parts += slides(run, f": {run.name}" * (len(runs) > 1), f"-{number + 1}" * (len(runs) > 1), len(runs))
    if not parts:
        parts.append(Words(("No diagnostics are on record (diagnostics.every).",)))
    return Section("diagnostics", "Connections", tuple(parts))


def _scalars(runs: Sequence[Run]) -> list[Lines]:
    charts = []
    for name, (title, value, log, figures) in SCALARS.items():
        lines = []
        for number, run in enumerate(runs):
            for place, (figure, words) in enumerate(figures.items()):
                seen = [each for each in run.observations if figure in each.scalars]
                if not seen:
                    continue
                steps = np.array([each.step for each in seen], dtype=float)
                over = placed(run.training, steps)
                values = np.array([each.scalars[figure] for each in seen])
                mark = " ".join(filter(None, [letter(runs, run), words if len(figures) > 1 else ""]))
                lines.append(
                    Line(
                        f"{run.name}, {words}" if len(runs) > 1 else words,
                        mark,
                        over,
                        values,
                        number * len(figures) + place,
                        "marked",
                    )
                )
        if lines:
            charts.append(Lines(f"diagnostics-{name}", title, value, AXES, tuple(lines), log, not log))
    return charts


def slides(run: Run, of: str, suffix: str, runs: int) -> list[Slides | Words]:
    """What the arrays of the run's observations show, each a chart for every step that has them."""
    charts: dict[str, dict[int, Chart]] = {}
    observed = shown(run.observations, runs)
    for step, arrays in observed:
        for chart in observed_charts(arrays):
            charts.setdefault(chart.name, {})[step] = chart
    having = sum(each.file is not None for each in run.observations)
    note = f"{len(observed)} of {having} observations are shown." if having > len(observed) else ""
    damaged = [str(step) for step, arrays in observed if not arrays]
    said = f"The arrays of these steps' observations are damaged{of}: {', '.join(damaged)}."
    return [
        *([Words((said,))] if damaged else []),
        *(
            Slides(f"{name}{suffix}", f"{next(iter(found.values())).title}{of}", found, note)
            for name, found in charts.items()
        ),
    ]
