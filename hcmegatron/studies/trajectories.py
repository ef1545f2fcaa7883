"""The gap of the loss over training, of runs of the same seed, as mHC's Fig. 5 (2512.24880) shows it, with its interval
over seeds at every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hcmegatron.report.inputs.json_lines import read_lines
from hcmegatron.report.inputs.metrics import Columns, columns, moving_mean, window_of
from hcmegatron.studies.gaps import Interval, t_interval
from hcmegatron.studies.results import Arm, Place, Point, Results

POINTS = 200  # of a curve

Curves = Callable[[str], Columns]  # the training steps of a run by its name


class Trajectory(NamedTuple):
    """An arm's gap at one place.

    Attributes:
        steps: [T].
        gaps: at each step, over seeds that have both curves there.
    """

    arm: Arm
    place: Place
    steps: np.ndarray
    gaps: tuple[Interval, ...]


def read_curves(directory: Path) -> Curves:
    """Of the runs in `directory`/runs, each read once; a run without metrics.jsonl has none."""
    known: dict[str, Columns] = {}

    def curve(run: str) -> Columns:
        if run not in known:
            known[run] = columns(read_lines(directory / "runs" / run / "metrics.jsonl"), float("nan"))[0]
        return known[run]

    return curve


def trajectories(results: Results, places: list[Place], curves: Curves, level: float) -> list[Trajectory]:
    """Of every arm but the baseline at these places, where pairs of runs have curves."""
    found = []
    for place in places:
        base = _smoothed(results.best(results.baseline, place), curves) if results.baseline else {}
        for arm in results.arms:
            if arm != results.baseline:
                own = _smoothed(results.best(arm, place), curves)
                found += _trajectory(arm, place, own, base, level)
    return found


def _smoothed(points: list[Point], curves: Curves) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By seed: steps and smoothed losses; runs that diverged are in it as far as they have a loss. Of a decay alone
    there is no curve: its run's goes on without it."""
    found = {}
    for point in points:
        if not point.is_run:
            continue
        curve = curves(point.group)
        if len(curve) and curve.has("loss"):
            losses = moving_mean(curve["loss"], window_of(len(curve)))
            losses[~np.isfinite(curve["loss"])] = np.nan
            found[point.seed] = curve.over["step"], losses
    return found


def _trajectory(
    arm: Arm,
    place: Place,
    own: Mapping[str, tuple[np.ndarray, np.ndarray]],
    base: Mapping[str, tuple[np.ndarray, np.ndarray]],
    level: float,
) -> list[Trajectory]:
    seeds = [seed for seed in own if seed in base]
    if not seeds:
        return []
    last = max(min(own[seed][0][-1], base[seed][0][-1]) for seed in seeds)
    first = min(max(own[seed][0][0], base[seed][0][0]) for seed in seeds)
    steps = np.unique(np.linspace(first, last, POINTS).round())
    at = np.array([_at(steps, *own[seed]) - _at(steps, *base[seed]) for seed in seeds])
    gaps = tuple(t_interval(column[np.isfinite(column)], level) for column in at.T)
    return [Trajectory(arm, place, steps, gaps)]


def _at(steps: np.ndarray, known: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Losses at these steps; nan outside those that are known, and beside a loss that is nan."""
    return np.interp(steps, known, losses, left=np.nan, right=np.nan)
