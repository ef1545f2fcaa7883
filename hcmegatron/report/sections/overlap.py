"""What was computed, waited for and hidden in profiled steps: profile/summary.json (docs/profile.md), in the rows that
the run's log has too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hcmegatron.profiling import files
from hcmegatron.profiling.rows import critical_path, introduction, ms, tables
from hcmegatron.report.charts import Bars, Part, Section, Table, Words
from hcmegatron.report.inputs.run import Run

MOST_PATH = 40  # actions of the critical path


def overlap(runs: Sequence[Run]) -> Section:
    """Bars and tables for each run that was profiled."""
    parts: list[Part] = []
    for number, run in enumerate(runs):
        several = len(runs) > 1
        if run.profile is not None:
            parts += _whole(run, f": {run.name}" * several, f"-{number + 1}" * several)
        elif (run.path / files.FOLDER / files.SUMMARY).exists():
            parts.append(Words((f"{run.name}: its profile cannot be read.",)))
    if not parts:
        parts.append(Words(("No run was profiled: hcmegatron profile writes profile/summary.json.",)))
    return Section("overlap", "Overlap", tuple(parts))


def _whole(run: Run, of: str, suffix: str) -> list[Part]:
    """The parts; a line where the file's form is right and a figure is missing or none."""
    try:
        return _parts(dict(run.profile or {}), of, suffix)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        return [Words((f"{run.name}: {files.FOLDER}/{files.SUMMARY} is not whole: {error!r}.",))]


def _parts(profile: dict[str, Any], of: str, suffix: str) -> list[Part]:
    words = [*introduction(profile), critical_path(profile["critical_path"])]
    return [
        Words(tuple(f"{line[:1].upper()}{line[1:]}{of}." for line in words)),
        _bars(profile["per_rank"], of, suffix),
        *(
            Table(f"{rows.title[:1].upper()}{rows.title[1:]}{of}", rows.head, rows.rows)
            for rows in tables(profile)[1:]  # the first one is the bars'
        ),
        _path(profile["critical_path"], of),
    ]


def _bars(ranks: list[dict[str, Any]], of: str, suffix: str) -> Bars:
    parts = {"computing": np.array([float(rank["compute_ms"]) for rank in ranks])}
    for cause in ranks[0]["bubble_ms"]:
        parts[f"bubble: {cause}"] = np.array([float(rank["bubble_ms"][cause]) for rank in ranks])
    bars = tuple(f"rank {rank['rank']}" for rank in ranks)
    return Bars(f"bubble{suffix}", f"Where a step's time goes{of}", "ms a step", bars, parts, {})


def _path(path: list[dict[str, Any]], of: str) -> Table:
    rows = tuple((at["action"], str(at["rank"]), ms(at["start_ms"]), ms(at["ms"])) for at in path[:MOST_PATH])
    note = f"The first {MOST_PATH} of {len(path)}." if len(path) > MOST_PATH else ""
    return Table(f"Critical path{of}", ("action", "rank", "start, ms", "ms"), rows, note)
