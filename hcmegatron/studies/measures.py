"""What the steps of a run come to: figures of the whole, from the entries of its metrics.jsonl. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from hcmegatron.training.spikes import deviations

SPIKE_WINDOW, SPIKE_DEVIATIONS = 128, 6.0  # steps before a step, and robust deviations above their median
LAST = 20  # steps that the training loss is the mean of
WARM_UP = 5  # steps that speeds are not taken of
PERCENTILES = (50, 90, 99)
Entry = Mapping[str, Any]


def path_of(trunk: Iterable[Entry], at_step: int, branch: Iterable[Entry]) -> list[Entry]:
    """The entries of a branch with those of its run before it, as if it had been trained alone."""
    return [entry for entry in trunk if entry.get("step", 0) <= at_step] + list(branch)


def of_training(entries: Sequence[Entry]) -> dict[str, float]:
    """Figures of training steps and observations; NaN where nothing says one.

    Steps that were repeated are there once in metrics.jsonl. A loss that was not finite is no number there, and counts
    as a spike.
    """
    steps = [entry for entry in entries if entry.get("kind") == "train"]
    losses, norms = _column(steps, "loss"), _column(steps, "grad_norm")
    norms = norms[np.isfinite(norms)]
    found = {
        "train_loss": float(np.mean(losses[-LAST:])) if len(losses) else math.nan,
        "spikes": float(spikes(losses)),
        "largest_gain": largest_gain(entries),
    }
    for share in PERCENTILES:
        found[f"grad_norm_p{share}"] = float(np.percentile(norms, share)) if len(norms) else math.nan
    found["grad_norm_max"] = float(norms.max()) if len(norms) else math.nan
    found["hours"] = float(np.nansum(_column(steps, "seconds"))) / 3600
    settled = steps[WARM_UP:] if len(steps) > 2 * WARM_UP else steps
    for name in ("tokens_per_s", "mfu"):
        values = _column(settled, name)
        values = values[np.isfinite(values)]
        found[name] = float(np.median(values)) if len(values) else math.nan
    memory = _column(steps, "memory_gib")
    found["memory_gib"] = float(np.nanmax(memory)) if np.isfinite(memory).any() else math.nan
    return found


def spikes(losses: np.ndarray) -> int:
    """How many steps have a loss more than SPIKE_DEVIATIONS above the median of the finite ones among the SPIKE_WINDOW
    steps before (training/spikes.py; not before half of them are there), or none that is finite.

    Args:
        losses: [steps], nats.
    """
    count = 0
    for index, loss in enumerate(losses):
        before = losses[max(0, index - SPIKE_WINDOW) : index]
        before = before[np.isfinite(before)]
        if not np.isfinite(loss):
            count += 1
        elif len(before) >= SPIKE_WINDOW // 2:
            count += deviations(loss, before.tolist()) > SPIKE_DEVIATIONS
    return count


def largest_gain(entries: Iterable[Entry]) -> float:
    """The largest composite Amax gain, forward or backward, of all observations (diagnostics)."""
    names = ("composite_gain_forward_max", "composite_gain_backward_max")
    found = [
        entry[name]
        for entry in entries
        if entry.get("kind") == "diagnostics"
        for name in names
        if isinstance(entry.get(name), int | float)
    ]
    return max(found, default=math.nan)


def evaluated(entries: Iterable[Entry], kind: str, step: int) -> dict[str, float]:
    """The losses of the evaluation of a kind after a step, nats a byte: loss, and loss/NAME of every source."""
    found: dict[str, float] = {}
    for entry in entries:
        if (entry.get("kind"), entry.get("step")) == (kind, step):
            found = {name: value for name, value in entry.items() if name.partition("/")[0] == "loss"}
    return {name: value for name, value in found.items() if isinstance(value, float)}


def _column(steps: Sequence[Entry], name: str) -> np.ndarray:
    """[steps]; NaN where one has no number of the name."""
    values = (entry.get(name) for entry in steps)
    return np.array([value if isinstance(value, int | float) else math.nan for value in values], dtype=float)
