"""The verb `status`: where a run is: queue, step, time left, last line, errors. Of jobs and of runs started by hand."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from launch import logs, progress, record
from launch.job import FOLDER, LaunchError
from launch.queue import attempts, local_process, lock_holders, marker, slurm_ids, squeue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's own words."""
    parser.description = "Where a run is: queue, step, time left, last line, errors."
    parser.add_argument(
        "path", metavar="RUN", type=Path, help="the run directory, or that of an array's runs"
    )


def main(options: argparse.Namespace) -> int:
    """Run the verb. LaunchError: no run is there."""
    for run in rows(options.path):
        print(f"{run}")
        for name, words in facts(run):
            print(f"  {name:<10} {words}")
    return 0


def rows(path: Path) -> list[Path]:
    """The run directory, or the run directories in it.

    Raises:
        LaunchError: neither.
    """
    if not (path / "launch" / "array.sh").exists() and any(
        (path / name).exists() for name in (FOLDER, "metrics.jsonl", "train.log", ".lock")
    ):
        return [path]
    found = sorted(each.parents[1] for each in path.glob(f"*/{record.FILE}"))
    if not found:
        raise LaunchError(f"{path}: there is no run; name a run directory")
    return found


def facts(run: Path) -> Iterable[tuple[str, str]]:
    """Name and words of what there is to say, the state first."""
    yield "state", state(run)
    yield from history(run)
    steps, planned = progress.read_steps(run), progress.planned_steps(run)
    if steps:
        done, seconds = steps[-1]["step"], progress.step_seconds(steps)
        words = f"{done} of {planned}" if planned else str(done)
        if seconds is not None:
            words += f", {seconds:.3g} s each"
            if planned and done < planned:
                left = timedelta(seconds=round((planned - done) * seconds))
                words += f", {left} left without evaluations and saves"
        yield "step", words
    if line := progress.last_line(run / "train.log"):
        yield "last line", line
    try:
        mistakes = logs.grouped(logs.errors(run))
    except LaunchError:  # there are no logs yet
        return
    for whose, text in mistakes[:3]:
        yield "error", f"{whose}: {text.strip().splitlines()[-1].strip()}"
    if len(mistakes) > 3:
        yield "error", f"and {len(mistakes) - 3} more: hcmegatron logs {run} --errors"


def state(run: Path) -> str:
    """Of the job, in words."""
    entry = record.read(run)
    if ids := slurm_ids(run):
        found = squeue(ids)
        if found:
            return "; ".join(
                f"job {job.id} {job.state}"
                + (f" on {job.nodes} for {job.ran}, {job.left} left" if job.state == "RUNNING" else "")
                + (f" ({job.reason})" if job.state == "PENDING" else "")
                for job in found
            ) + _ended(run)
        return f"job {', '.join(ids)} has left the queue{_ended(run)}"
    if holders := lock_holders(run):
        return f"running on this machine, rank 0 is process {holders[0]}"
    if entry is not None and (process := local_process(entry)):
        return f"starting on this machine, process {process}"
    elsewhere = f"; submitted on {entry['host']}" if entry else ""
    return f"not running on this machine{_ended(run) or elsewhere}"


def history(run: Path) -> Iterable[tuple[str, str]]:
    """The newest of what the batch script wrote down: deaths, requeues, the end."""
    lines = attempts(run)
    if not lines:
        return
    counts = {name: sum(line["event"] == name for line in lines) for name in ("started", "died", "requeued")}
    yield "attempts", ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    excluded = marker(run, "exclude").read_text().split() if marker(run, "exclude").exists() else []
    if excluded:
        yield "left out", ", ".join(dict.fromkeys(excluded)) + " (launch/exclude)"


def _ended(run: Path) -> str:
    """What the batch script has said of its end."""
    try:
        status, _, words = marker(run, "ended").read_text().strip().partition(" ")
    except OSError:
        return ""
    return f": {words}, status {status}"
