"""What runs have shown, in runs.jsonl: read from a run's directory once it has ended, a line a run. No torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hcmegatron.diagnostics.files import read_observations
from hcmegatron.platform.exit_status import DIVERGED
from tools.stability.rule import Record, Records, Run, diverged, excesses, spikes

FILE = "runs.jsonl"


def measure(run: Run, directory: Path, status: int, warmup: int, window: int, seconds: float) -> Record:
    """What an ended run shows.

    Args:
        status: of its command, 0 or DIVERGED.
    """
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = [_number(line["loss"]) for line in lines if line["kind"] == "train"]
    held = [_number(line["loss"]) for line in lines if line["kind"] == "validation"]
    scalars = [found.scalars for found in read_observations(directory) if found.tokens]
    ended = status == DIVERGED
    excess = excesses(losses, warmup, window)
    return Record(
        run,
        status,
        diverged(losses, ended, window),
        math.inf if ended or not held else held[-1],
        spikes(excess),
        max(excess, default=0.0),
        *(_end_and_most(scalars, f"composite_gain_{way}_max") for way in ("forward", "backward")),
        round(seconds, 1),
    )


def write(folder: Path, found: Records) -> None:
    """Put these on record, all or none."""
    part = folder / f".{FILE}.part"
    part.write_text("".join(_line(record) for record in found.values()))
    os.replace(part, folder / FILE)


def read(folder: Path) -> dict[Run, Record]:
    """All that are on record."""
    file, found = folder / FILE, {}
    for line in file.read_text().splitlines() if file.exists() else []:
        entry = json.loads(line)
        run = Run(*(entry.pop(name) for name in Run._fields))
        found[run] = Record(run, **{name: _number(value) for name, value in entry.items()})
    return found


def _line(record: Record) -> str:
    fields = {name: _finite(value) for name, value in vars(record).items() if name != "run"}
    return json.dumps({**record.run._asdict(), **fields}, allow_nan=False) + "\n"


def _end_and_most(scalars: Iterable[dict[str, float]], name: str) -> tuple[float, float]:
    values = [_number(each[name]) for each in scalars]
    return (values[-1], max(values)) if values else (math.inf, math.inf)


def _number(value: Any) -> Any:
    """As it was written: what is null, or not a number, is inf."""
    if isinstance(value, list):
        return tuple(map(_number, value))
    return math.inf if value is None or value != value else value


def _finite(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
