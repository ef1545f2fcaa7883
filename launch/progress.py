"""How far a run is, read from its run directory."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from hcmegatron.config import ConfigError, read_config

_STEPS = 50  # the newest, of which a step's time is taken


def read_steps(run_dir: Path) -> list[dict]:
    """The lines of training steps of metrics.jsonl, the newest last; [] where there are none."""
    try:
        lines = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    return [entry for entry in _entries(lines) if entry.get("kind") == "train"]


def step_seconds(steps: list[dict]) -> float | None:
    """The median of the newest."""
    found = [entry["seconds"] for entry in steps[-_STEPS:] if isinstance(entry.get("seconds"), int | float)]
    return statistics.median(found) if found else None


def _entries(lines: Iterable[bytes]) -> Iterable[dict]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # the torn last line of a run that is writing, or was killed
            continue
        if isinstance(entry, dict):
            yield entry


def planned_steps(run_dir: Path) -> int | None:
    """training.steps of the run's configuration; None where there is none that can be read."""
    for name in ("config.resolved.yaml", "config.yaml", "launch/config.yaml"):
        if (run_dir / name).is_file():
            try:
                return read_config(run_dir / name)[0].training.steps
            except ConfigError:
                continue
    return None


def last_line(path: Path) -> str:
    """The last line of a text file that is not empty; "" where there is none. Looks at its end alone."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")
