"""Planned memory of every pipeline rank, with what was measured beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hcmegatron.planner.machines import GIB
from hcmegatron.report.charts import Bars, Part, Section, Words
from hcmegatron.report.inputs.run import Run

MEASURED = "measured"


def memory(runs: Sequence[Run]) -> Section:
    """A chart for each run that has a plan."""
    parts: list[Part] = []
    for run in runs:
        planned = _planned(run.plan)
        if planned:
            parts.append(_chart(runs, run, planned))
    if not parts:
        parts.append(Words(("No plan.json with memory by rank is there.",)))
    return Section("memory", "Memory", tuple(parts))


def _chart(runs: Sequence[Run], run: Run, planned: list[Mapping[str, float]]) -> Bars:
    names = [name for name in planned[0] if any(rank.get(name, 0.0) > 0 for rank in planned)]
    parts = {name: np.array([rank.get(name, 0.0) for rank in planned]) / GIB for name in names}
    marks, note = {}, "No memory was measured."
    if run.memory:
        marks[MEASURED] = np.array([run.memory.get(rank, np.nan) for rank in range(len(planned))])
        of = "whole processes, with the program and the data" if _on_cpu(run) else "the devices' tensors"
        lacking = len(planned) - int(np.isfinite(marks[MEASURED]).sum())
        left = f"; of {lacking} ranks it is not on record (a run writes it when it ends)" if lacking else ""
        note = f"What was measured is of {of}{left}."
    number = "" if len(runs) == 1 else f"-{list(runs).index(run) + 1}"
    title = "Memory by pipeline rank" + (f": {run.name}" if len(runs) > 1 else "")
    bars = tuple(f"rank {rank}" for rank in range(len(planned)))
    return Bars(f"memory{number}", title, "GiB at the peak, planned", bars, parts, marks, note=note)


def _planned(plan: Mapping[str, Any] | None) -> list[Mapping[str, float]]:
    """Bytes by part, of each pipeline rank."""
    ranks = (plan or {}).get("memory_per_rank")
    if not isinstance(ranks, list):
        return []
    peaks = [rank.get("peak") if isinstance(rank, dict) else None for rank in ranks]
    whole = all(
        isinstance(peak, dict) and all(isinstance(v, int | float) for v in peak.values()) for peak in peaks
    )
    return peaks if whole else []


def _on_cpu(run: Run) -> bool:
    machine = (run.plan or {}).get("machine")
    return isinstance(machine, dict) and machine.get("name") == "CPU"
