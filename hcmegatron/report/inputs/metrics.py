"""metrics.jsonl as columns: one number a step, NaN where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
# What a curve can be drawn over.
AXES = {"step": "step", "tokens": "tokens", "hours": "hours of training"}


@dataclass(frozen=True)
class Columns:
    """Figures by name, of steps in ascending order.

    Attributes:
        over: by name of AXES, where each entry is on it.
        figures: by name, [entries]; NaN where an entry has no finite number of that name.
    """

    over: Mapping[str, Array]
    figures: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.over["step"])

    def __getitem__(self, name: str) -> Array:
        return self.figures.get(name, np.full(len(self), np.nan))

    def has(self, name: str) -> bool:
        """Whether there is any number of this name."""
        return bool(np.isfinite(self[name]).any())


def columns(entries: Iterable[Mapping[str, Any]], tokens_per_step: float) -> tuple[Columns, Columns]:
    """The training steps and the evaluations. Of a step that is there twice, the later line counts.

    Tokens and hours add up what the steps themselves say; where steps are missing, or say nothing, they are taken to be
    like `tokens_per_step`, and to take no time.

    Args:
        entries: of metrics.jsonl.
    """
    trained: dict[int, Mapping[str, Any]] = {}
    evaluated: dict[int, dict[str, Any]] = {}
    for entry in entries:
        step, kind = entry.get("step"), entry.get("kind")
        if type(step) is not int or step < 0:
            continue
        if kind == "train":
            trained[step] = entry
        elif kind in ("validation", "test"):
            prefix = "" if kind == "validation" else "test "  # of losses on test sets: "test loss" and so on
            figures = {f"{prefix}{name}": value for name, value in entry.items()}
            evaluated[step] = evaluated.get(step, {}) | figures
    training = _columns(trained)
    steps, seconds = training.over["step"], training["seconds"]
    tokens = training["tokens_per_s"] * seconds
    tokens = np.where(np.isfinite(tokens), tokens, tokens_per_step) * np.diff(steps, prepend=0)
    over = {"tokens": np.cumsum(tokens), "hours": np.cumsum(np.nan_to_num(seconds)) / 3600}
    training = Columns({**training.over, **over}, training.figures)
    evaluation = _columns(evaluated)
    return training, Columns(placed(training, evaluation.over["step"]), evaluation.figures)


def placed(training: Columns, steps: Array) -> dict[str, Array]:
    """Where these steps, [K], are on every one of AXES; NaN before the first step on record."""
    known = training.over["step"]
    if not len(known):
        return {"step": steps, "tokens": steps * np.nan, "hours": steps * np.nan}
    return {"step": steps} | {
        name: np.interp(steps, known, training.over[name], left=np.nan) for name in ("tokens", "hours")
    }


def _columns(entries: Mapping[int, Mapping[str, Any]]) -> Columns:
    steps = sorted(entries)
    names = {name for entry in entries.values() for name in entry} - {"step", "kind", "nonfinite"}
    figures = {name: np.array([_number(entries[step].get(name)) for step in steps]) for name in sorted(names)}
    return Columns({"step": np.array(steps, dtype=float)}, figures)


def _number(value: Any) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
    return number if np.isfinite(number) else np.nan


def moving_mean(values: Array, window: int) -> Array:
    """The mean of the finite values among the `window` around each, fewer at both ends; NaN where there is none."""
    finite = np.isfinite(values)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, values, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    at = np.arange(len(values))
    first = np.maximum(at - (window - 1) // 2, 0)
    last = np.minimum(at + window // 2 + 1, len(values))
    count = counts[last] - counts[first]
    return np.where(count > 0, (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)


def window_of(entries: int) -> int:
    """Steps that a smoothed curve takes the mean of: a fiftieth of all, at least five; one where there are few. An odd
    number, so that it looks as far ahead as back."""
    return max(5, 2 * (entries // 100) + 1) if entries >= 25 else 1
