"""What ran and how it ended, in a paragraph each, and a table of the last figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hcmegatron.report.charts import Section, Table, Words
from hcmegatron.report.inputs.run import Run
from hcmegatron.report.sections.names import titled

TAIL = 4096  # bytes of the log's end that are looked at


def summary(runs: Sequence[Run]) -> Section:
    """A paragraph for each run, and the figures side by side."""
    lines = [f"{titled(runs, run)}: {what(run)}, {outcome(run)}" for run in runs]
    lines += [f"{run.name}: {remark}." for run in runs for remark in run.remarks]
    rows = {
        "steps": [f"{run.steps:,} of {run.planned_steps or 0:,}" for run in runs],
        "tokens": [_count(run.training.over["tokens"]) for run in runs],
        "hours of training": [_last(run.training.over["hours"], ".3g") for run in runs],
        "last training loss, nats a token": [_last(run.training["loss"], ".4f") for run in runs],
        "last held-out loss, nats a byte": [_last(run.validation["loss"], ".4f") for run in runs],
        "last held-out loss, bits a byte": [_last(run.validation["bits_per_byte"], ".4f") for run in runs],
        "loss on test sets, nats a byte": [_last(run.validation["test loss"], ".4f") for run in runs],
        "tokens a second, median": [
            f"{run.tokens_per_s:,.0f}" if run.tokens_per_s > 0 else "–" for run in runs
        ],
        "TFLOP/s a rank, median": [_median(run, "tflops_per_rank") for run in runs],
        "most memory of rank 0, GiB": [_most(run, "memory_gib") for run in runs],
        "skipped steps": [str(sum(event.kind == "skip" for event in run.events)) for run in runs],
    }
    table = Table(
        "Figures",
        ("", *(titled(runs, run) for run in runs)),
        tuple((name, *values) for name, values in rows.items()),
    )
    return Section("summary", "Summary", (Words(tuple(lines)), table))


def what(run: Run) -> str:
    """The network and the layout, in words."""
    found = run.configuration
    if not found:
        return "a run whose configuration is not known"
    kind, n = found.get("connection.kind"), found.get("connection.n")
    streams = f" with n = {n}" if kind != "residual" else ""
    experts = found.get("moe.experts")
    parts = [
        f"{kind}{streams}",
        f"{found.get('model.layers')} layers of width {found.get('model.hidden_size')}",
        *([f"{experts} experts"] if isinstance(experts, int) and experts else []),
        f"{found.get('parallel.schedule')} over {found.get('parallel.pipeline')} pipeline ranks"
        if found.get("parallel.pipeline") not in (None, 1)
        else "no pipeline",
    ]
    return ", ".join(parts)


def outcome(run: Run) -> str:
    """How it ended, with its last losses and its speed."""
    losses, finite = run.training["loss"], np.isfinite(run.training["loss"])
    bad = len(losses) - 1 - int(np.flatnonzero(finite)[-1]) if finite.any() else len(losses)
    after = f"step {run.steps:,} of {run.planned_steps:,}" if run.planned_steps else f"step {run.steps:,}"
    gave_up = next((e.words for e in reversed(run.events) if "not started again" in e.words), "")
    if not len(losses):
        ended = "is running; no step is on record yet" if run.running else "has no step on record"
    elif run.running:
        ended = f"is running, after {after}"
    elif bad:
        ended = f"diverged: the last {bad} losses, to {after}, are not finite"
    elif run.planned_steps and run.steps >= run.planned_steps:
        ended = f"finished after {after}"
    elif gave_up:
        ended = f"failed after {after}: {gave_up}"
    else:
        ended = f"stopped after {after}{_log_says(run.path)}"
    figures = [
        f"training loss {losses[finite][-1]:.4f} nats a token" if finite.any() else "",
        f"held-out loss {_last(run.validation['bits_per_byte'], '.4f')} bits a byte"
        if run.validation.has("bits_per_byte")
        else "",
        f"{run.tokens_per_s:,.0f} tokens a second" if run.tokens_per_s > 0 else "",
    ]
    return "; ".join(filter(None, [ended, *figures])) + "."


def _log_says(run: Path) -> str:
    """The reason for a stop, where the log's end has it."""
    try:
        with (run / "train.log").open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - TAIL))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = next((line for line in reversed(lines) if line.startswith("stopped by ")), "")
    return f" by {said.removeprefix('stopped by ').partition(' ')[0]}" if said else ""


def _last(values: np.ndarray, form: str) -> str:
    finite = values[np.isfinite(values)]
    return format(finite[-1], form) if len(finite) else "–"


def _count(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite[-1]:,.0f}" if len(finite) else "–"


def _median(run: Run, name: str) -> str:
    values = run.training[name]
    return f"{np.nanmedian(values):.3g}" if np.isfinite(values).any() else "–"


def _most(run: Run, name: str) -> str:
    values = run.training[name]
    return f"{np.nanmax(values):.2f}" if np.isfinite(values).any() else "–"
