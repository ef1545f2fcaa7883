"""Loss, learning rate, gradient norm, throughput, over steps, tokens or time."""

from __future__ import annotations

from collections.abc import Sequence

from hcmegatron.report import thin
from hcmegatron.report.charts import Line, Lines, Part, Section, Words
from hcmegatron.report.inputs.metrics import AXES, moving_mean, window_of
from hcmegatron.report.inputs.run import Run
from hcmegatron.report.sections.names import letter

# Figure: title, what it is of; whether a smoothed curve lies over it, its axis is logarithmic, and has zero.
FIGURES = {
    "lr": ("Learning rate", "learning rate", False, False, True),
    "grad_norm": ("Gradient norm, before clipping", "gradient norm", True, True, False),
    "tokens_per_s": ("Throughput", "tokens a second, of all ranks", True, False, True),
    "tflops_per_rank": ("Computation", "TFLOP/s a rank, without recomputation", True, False, True),
    "data_wait": ("Waiting for data", "share of the step", True, False, True),
}


def training(runs: Sequence[Run]) -> Section:
    """The curves that every run has."""
    if not any(len(run.training) for run in runs):
        return Section("training", "Training", (Words(("No step is on record.",)),))
    charts: list[Part] = [loss(runs)]
    if any(run.validation.has("bits_per_byte") for run in runs):
        charts.append(validation(runs))
    for name, figure in FIGURES.items():
        if any(run.training.has(name) for run in runs):
            charts.append(_chart(runs, name, *figure))
    return Section("training", "Training", tuple(charts))


def loss(runs: Sequence[Run]) -> Lines:
    """Training loss with the steps that were not finite."""
    chart = _chart(runs, "loss", "Training loss", "loss, nats a token", True, False, False)
    tokenizers = {str(run.configuration.get("data.tokenizer")) for run in runs}
    apart = (
        " The runs have different tokenizers, so that nats a token do not compare; bits a byte below do."
        if len(tokenizers) > 1
        else ""
    )
    return Lines(chart.name, chart.title, chart.value, AXES, chart.lines, note=chart.note + apart)


def validation(runs: Sequence[Run]) -> Lines:
    """Held-out loss, which compares whatever the tokenizers are."""
    lines = tuple(
        Line(
            run.name,
            letter(runs, run),
            run.validation.over,
            run.validation["bits_per_byte"],
            number,
            "marked",
        )
        for number, run in enumerate(runs)
        if run.validation.has("bits_per_byte")
    )
    return Lines(
        "validation",
        "Loss on held-out text",
        "bits a byte",
        AXES,
        lines,
        note="Bits a byte compare across tokenizers.",
    )


def _chart(
    runs: Sequence[Run], name: str, title: str, value: str, smooth: bool, log: bool, from_zero: bool
) -> Lines:
    lines: list[Line] = []
    longest = max(len(run.training) for run in runs)
    window = window_of(longest)
    for number, run in enumerate(runs):
        if not run.training.has(name):
            continue
        values, over = run.training[name], run.training.over
        if smooth and window > 1:
            lines.append(Line(f"{run.name}, each step", "", over, values, number, "faint"))
            values = moving_mean(values, window)
        lines.append(Line(run.name, letter(runs, run), over, values, number))
    said = [f"Smoothed: the mean of {window} steps around each."] if smooth and window > 1 else []
    note = " ".join([*said, *filter(None, [thin.words(longest)])])
    return Lines(name, title, value, AXES, tuple(lines), log, from_zero, note)
