"""How far a run of a study is, from the files of its run directory alone, whoever started it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from hcmegatron.platform.exit_status import DIVERGED, STOPPED
from hcmegatron.report.inputs.json_lines import read_lines
from hcmegatron.report.inputs.lock import held
from hcmegatron.studies.record import Entry
from launch.progress import last_line

STARTS = "study.jsonl"  # in a run directory: every start and end of it by `study run`
Name = Literal["waiting", "running", "interrupted", "finished", "failed", "diverged"]


class State(NamedTuple):
    """Where a run is.

    Attributes:
        step: of its newest whole checkpoint; 0 without one.
        failures: ends by an error, one after another, since there was a new checkpoint.
    """

    name: Name
    step: int
    failures: int = 0

    @property
    def has_result(self) -> bool:
        """Whether nothing is left to train: that a run diverges is a result."""
        return self.name in ("finished", "diverged")


def state_of(run: Path, steps: int, evaluation: str = "validation") -> State:
    """The state of the run in a directory.

    Args:
        steps: at which it is finished.
        evaluation: the kind of its last one.
    """
    if held(run / ".lock"):
        return State("running", newest_step(run))
    ends = [entry for entry in read_lines(run / STARTS) if entry.get("event") == "ended"]
    step, launched = newest_step(run), _launched(run, ends[-1]["time"] if ends else 0.0)
    if step == steps and (
        _evaluated(run, steps, evaluation) or launched == 0 or (ends and ends[-1].get("status") == 0)
    ):
        return State("finished", step)
    if last_line(run / "train.log").startswith("ended by Diverged"):
        return State("diverged", step)
    failures = 0
    for entry in reversed(ends):
        if entry.get("status") in (0, STOPPED, DIVERGED) or entry.get("step") != step:
            break
        failures += not entry.get("asked")
    if failures or launched not in (None, 0, STOPPED, DIVERGED):
        return State("failed", step, max(1, failures))
    return State("interrupted" if (run / "metrics.jsonl").exists() else "waiting", step)


def has_diverged(entry: Entry, states: Mapping[str, State]) -> bool:
    """Whether a point has no loss because its run diverged: itself, or the run that it was to branch from, before the
    checkpoint that it begins with."""
    own = states[entry.name].name
    if own == "diverged":
        return True
    if entry.trunk is None or own != "waiting":
        return False
    trunk = states[entry.trunk]
    return trunk.name == "diverged" and trunk.step < entry.at_step


def newest_step(run: Path) -> int:
    """Of the checkpoints that were completed; 0 without any."""
    found = [path.parent.name for path in run.glob("checkpoints/step-" + "[0-9]" * 8 + "/manifest.json")]
    return int(max(found).removeprefix("step-")) if found else 0


def checkpoint(run: Path, step: int) -> Path:
    """The checkpoint of a run after a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def is_complete(path: Path) -> bool:
    """Whether a checkpoint is: its manifest comes last, and its name after that."""
    return (path / "manifest.json").exists()


def note(run: Path, event: str, **facts: object) -> None:
    """Add a line to STARTS, in one write."""
    run.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": time.time(), "event": event, **facts})
    descriptor = os.open(run / STARTS, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def _evaluated(run: Path, step: int, kind: str) -> bool:
    """Whether there was an evaluation of a kind after a step: the last one is the last thing that a run does."""
    entries = reversed(read_lines(run / "metrics.jsonl"))
    return any(entry.get("kind") == kind and entry.get("step") == step for entry in entries)


def _launched(run: Path, since: float) -> int | None:
    """The status with which a job's script has ended for good; None where none has since then, seconds since 1970."""
    file = run / "launch/ended"
    try:
        if file.stat().st_mtime < since:
            return None
        word = file.read_text().partition(" ")[0]
    except OSError:
        return None
    return int(word) if word.isdigit() else None
