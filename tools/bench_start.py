"""How long a run takes from the command to its first step, and from its last step to the prompt.

    python -m tools.bench_start [--rounds 5] [FILE] [--section.key=value ...]

Runs `hcmegatron train FILE` (the quickstart) for two steps, over and over, each in a directory of its own, and tells
its phases as rank 0 sees them. Python keeps the modules' bytecode, as it does unless told otherwise: the first run,
which may compile it, does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hcmegatron.config import ConfigError
from hcmegatron.config.load import load_config
from hcmegatron.training.observer import End, Evaluation, Observer, Step
from tools.machine import Others, described, spread
from tools.targets import Targets, exit_status

if TYPE_CHECKING:
    from hcmegatron.training.setup import TrainingRun

IMPORTED = time.monotonic()  # in a rank, where an observer is looked for before anything else
STEPS = 2
FILE = "marks.json"  # in the run directory
# Each ends where the next begins: name, and the mark at its end.
PHASES = (
    ("command, configuration, imports, fork", "rank"),
    ("groups, data, model, optimizer, plan", "made"),
    ("rehearsal", "ready"),
    ("first step", "step 1"),
    ("second step and its checkpoint", "step 2"),
    ("evaluation", "evaluated"),
    ("last files, groups, processes", "exit"),
)
BEFORE, AFTER = ("rank", "made", "ready"), ("exit",)


class Marks(Observer):
    """Writes down on rank 0 when the run came where."""

    def __init__(self, run: TrainingRun) -> None:
        self._path = run.directory / FILE if run.ranks.rank == 0 else None
        self._marks = {"rank": IMPORTED, "made": time.monotonic()}

    def on_start(self) -> None:
        self._mark("ready")

    def on_step(self, step: Step) -> None:
        self._mark(f"step {step.number}")

    def on_eval(self, evaluation: Evaluation) -> None:
        self._mark("evaluated")

    def on_end(self, end: End) -> None:
        if self._path is not None:
            self._path.write_text(json.dumps(self._marks))

    def _mark(self, name: str) -> None:
        self._marks[name] = time.monotonic()


def run_once(settings: list[str]) -> dict[str, float]:
    """Seconds of every phase of one run. SystemExit, with what the run has said, where it failed."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    own = [f"--training.steps={STEPS}", "--run.observers=[tools.bench_start:Marks]"]
    with tempfile.TemporaryDirectory() as folder:
        own.append(f"--run.dir={folder}/run")
        began = time.monotonic()
        command = [sys.executable, "-m", "hcmegatron", "train", *settings, *own]
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        exited, path = time.monotonic(), Path(folder, "run", FILE)
        if done.returncode:
            raise SystemExit(f"{done.stderr}bench_start: the run has ended with status {done.returncode}")
        marks = (json.loads(path.read_text()) if path.exists() else {}) | {"exit": exited}
    if missing := [end for _, end in PHASES if end not in marks]:
        raise SystemExit(f"{done.stderr}bench_start: the run has left no mark of: {', '.join(missing)}")
    ends = [began, *(marks[end] for _, end in PHASES)]
    return {end: ends[index + 1] - ends[index] for index, (_, end) in enumerate(PHASES)}


def report(runs: list[dict[str, float]]) -> list[str]:
    """Prints the phases; what missed its target."""
    targets = Targets()
    print(f"seconds: median (least to most) of {len(runs)} runs")
    for name, end in PHASES:
        print(f"  {name:40}{spread([run[end] for run in runs])}")
    for name, ends, most in (
        ("command to the first step", BEFORE, 4.0),
        ("last step, evaluated, to the exit", AFTER, 2.0),
    ):
        totals = sorted(sum(run[end] for end in ends) for run in runs)
        target = targets.at_most(name, totals[len(totals) // 2], most)
        print(f"{name:42}{spread(totals)}  target: {target}")
    return targets.missed


def main() -> int:
    """Prints a table; returns 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("file", nargs="?", default="configs/quickstart.yaml")
    asked, overrides = parser.parse_known_args()
    try:
        load_config(asked.file, overrides)
    except ConfigError as error:
        parser.error(str(error))
    print(described())
    settings = [asked.file, *overrides]
    run_once(settings)
    others = Others()
    missed = report([run_once(settings) for _ in range(asked.rounds)])
    return others.verdict(lambda: exit_status(missed))


if __name__ == "__main__":
    raise SystemExit(main())
